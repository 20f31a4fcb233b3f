//! A device on a foreign MLS stack: a program of `tests/foreign`, which does what it is asked to, line by line.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use super::tools;

pub struct Foreigner {
    program: Child,
    calls: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Foreigner {
    /// A device of nobody yet.
    pub fn before(base: &str) -> Self {
        Self::running("attacker.js", &[base])
    }

    /// An honest, registered device: the one of `examples/ts-mls`.
    pub fn honest(base: &str, (user, device): (&str, &str)) -> Self {
        Self::running("honest.js", &[base, user, device])
    }

    /// Another device of a user, who shows that it is theirs.
    pub fn further(base: &str, (user, device): (&str, &str), shown: &str) -> Self {
        Self::running("honest.js", &[base, user, device, shown])
    }

    fn running(program: &str, args: &[&str]) -> Self {
        let mut node = Command::new("node");
        node.arg(tools::foreign(program)).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = node.spawn().unwrap();
        let (calls, answers) = (program.stdin.take().unwrap(), BufReader::new(program.stdout.take().unwrap()));
        Self { program, calls, answers }
    }

    /// A registered device with honest KeyPackages on the server.
    pub fn registered(base: &str, name: &str) -> Self {
        let mut foreigner = Self::before(base);
        let answer = foreigner.does("register", &json!({ "name": name, "count": 16 }));
        assert_eq!(answer["rejected"], json!([]), "what a foreign stack makes is good for the server");
        foreigner
    }

    /// Calls a method that has to succeed, and returns its answer.
    #[track_caller]
    pub fn does(&mut self, call: &str, with: &Value) -> Value {
        let mut said = self.says(call, with);
        assert!(said["failure"].is_null(), "{call}: {}", said["failure"]);
        said["answer"].take()
    }

    /// Has it do something that the server refuses, and answers the problem.
    #[track_caller]
    pub fn fails(&mut self, call: &str, with: &Value) -> String {
        let said = self.says(call, with);
        said["failure"].as_str().unwrap_or_else(|| panic!("{call}: {said}")).to_owned()
    }

    #[track_caller]
    fn says(&mut self, call: &str, with: &Value) -> Value {
        writeln!(self.calls, "{}", json!({ "call": call, "with": with })).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{call}: {error}: {line:?}"))
    }
}

impl Drop for Foreigner {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
