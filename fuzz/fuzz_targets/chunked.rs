//! The target `chunked`; what it checks is in `src/chunked.rs`.
#![cfg_attr(fuzzing, no_main)]

fusegate_fuzz::target!(fusegate_fuzz::chunked::check);
