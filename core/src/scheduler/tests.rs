//! Scenarios: what each step runs, written as a trace.
