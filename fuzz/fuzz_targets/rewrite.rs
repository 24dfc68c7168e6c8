//! The target `rewrite`; what it checks is in `src/rewrite.rs`.
#![cfg_attr(fuzzing, no_main)]

fusegate_fuzz::target!(fusegate_fuzz::rewrite::check);
