//! The target `request_head`; what it checks is in `src/request_head.rs`.
#![cfg_attr(fuzzing, no_main)]

fusegate_fuzz::target!(fusegate_fuzz::request_head::check);
