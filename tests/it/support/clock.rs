//! A program on a machine whose clock is off.

use std::process::Command;

use tempfile::TempDir;

use super::output;

/// Loaded into a program, has it see another time than the system's.
const OTHER_TIME: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, time);
  if (clock == CLOCK_REALTIME) time->tv_sec += atol(getenv("AHEAD"));
  return result;
}
"#;

/// A library that sets the clock of programs that start with it.
#[derive(Debug)]
pub struct OtherClock(TempDir);

impl OtherClock {
    pub fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (source, library) = (directory.path().join("time.c"), directory.path().join("time.so"));
        std::fs::write(&source, OTHER_TIME).unwrap();
        output(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]));
        Self(directory)
    }

    /// Has a program see a time that is so many seconds ahead.
    pub fn set(&self, command: &mut Command, ahead: i64) {
        command.env("LD_PRELOAD", self.0.path().join("time.so")).env("AHEAD", ahead.to_string());
    }
}
