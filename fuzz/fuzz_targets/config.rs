//! The target `config`; what it checks is in `src/config.rs`.
#![cfg_attr(fuzzing, no_main)]

fusegate_fuzz::target!(fusegate_fuzz::config::check);
