//! The target `target`; what it checks is in `src/target.rs`.
#![cfg_attr(fuzzing, no_main)]

fusegate_fuzz::target!(fusegate_fuzz::target::check);
