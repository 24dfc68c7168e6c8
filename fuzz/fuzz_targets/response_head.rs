//! The target `response_head`; what it checks is in `src/response_head.rs`.
#![cfg_attr(fuzzing, no_main)]

fusegate_fuzz::target!(fusegate_fuzz::response_head::check);
