//! The JSON Schema of what the command prints with `--json`.

use keypool_client::{
    Group, Incoming, Invited, LogState, MembershipChange, RefreshReport, Removed, Renewed, SafetyNumber, TrailCheck,
};
use keypool_openapi::{
    Device, DeviceOf, InventoryItem, PoolStatus, ReleaseResponse, RemovedDevice, ReserveResponse, RevokeResponse,
    SpendResponse,
};
use serde_json::{Map, Value, json};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

use crate::{
    answers::{Done, Exported, Failure, LinkedDevice, NewToken, ServerAddress, Token, Trail},
    doctor::Check,
};

/// Where utoipa looks for a type, and where this document has it.
const OPENAPI: &str = "#/components/schemas/";
const HERE: &str = "#/$defs/";

/// The definitions of the types and of the commands.
#[derive(Default)]
struct Definitions(Map<String, Value>);

impl Definitions {
    /// Adds a type, with those that it consists of, and returns a reference to it.
    fn of<T: ToSchema>(&mut self) -> Value {
        let mut parts = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut parts);
        for (name, schema) in parts {
            self.add(name, &schema);
        }
        json!({ "$ref": format!("{HERE}{}", T::name()) })
    }

    fn add(&mut self, name: String, schema: &RefOr<Schema>) {
        let mut schema = serde_json::to_value(schema).unwrap_or_default();
        refer_here(&mut schema);
        self.0.insert(name, schema);
    }

    /// A command that prints an object.
    fn one<T: ToSchema>(&mut self, commands: &[&str]) {
        let schema = self.of::<T>();
        for command in commands {
            self.0.insert((*command).to_owned(), schema.clone());
        }
    }

    /// A command that prints a list.
    fn list<T: ToSchema>(&mut self, command: &str) {
        let items = self.of::<T>();
        self.0.insert(command.to_owned(), json!({ "type": "array", "items": items }));
    }
}

/// Turns references into those of this document, and links in the documentation of the code into words.
fn refer_here(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(target) if key == "$ref" => *target = target.replace(OPENAPI, HERE),
                    Value::String(text) if key == "description" => {
                        *text = text.replace("[`", "`").replace("`]", "`").replace("super::", "");
                    }
                    value => refer_here(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(refer_here),
        _ => {}
    }
}

/// The document: one definition for each command, by its words with hyphens, and one for each type.
pub fn document() -> Value {
    let mut all = Definitions::default();
    all.one::<RefreshReport>(&["init", "refresh", "rotate"]);
    all.one::<PoolStatus>(&["status"]);
    all.list::<InventoryItem>("inventory");
    all.one::<Trail>(&["audit"]);
    all.list::<TrailCheck>("audit-verify");
    all.one::<LogState>(&["log", "log-status"]);
    all.one::<Exported>(&["log-export"]);
    all.one::<ReserveResponse>(&["reserve"]);
    all.one::<SpendResponse>(&["spend"]);
    all.one::<ReleaseResponse>(&["release"]);
    all.one::<RevokeResponse>(&["revoke"]);
    all.one::<SafetyNumber>(&["verify"]);
    all.one::<Token>(&["token"]);
    all.one::<ServerAddress>(&["server"]);
    all.list::<Device>("device-list");
    all.one::<LinkedDevice>(&["device-link"]);
    all.one::<RemovedDevice>(&["device-remove"]);
    all.one::<NewToken>(&["device-rotate-token"]);
    all.one::<Group>(&["group-create"]);
    all.list::<Group>("group-list");
    all.list::<DeviceOf>("group-members");
    all.list::<MembershipChange>("group-history");
    all.one::<Invited>(&["group-invite"]);
    all.one::<Removed>(&["group-remove"]);
    all.one::<Renewed>(&["group-renew"]);
    all.one::<Done>(&[
        "send",
        "group-admit",
        "group-forget",
        "group-leave",
        "group-update",
        "log-dismiss",
        "log-trust",
        "passphrase-change",
        "passphrase-remove",
        "token-set",
    ]);
    all.list::<Incoming>("receive");
    all.list::<Check>("doctor");
    all.one::<Failure>(&["error"]);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What `keypool --json` prints",
        "description": "A definition for each command, such as #/$defs/group-list for `keypool group list --json`, and \
            #/$defs/error for what a command that fails prints to the standard error. Objects may get further fields, and \
            kinds of things further values: ignore what you do not know.",
        "$defs": all.0,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::command::Cli;

    /// Commands that print no JSON of their own.
    const WITHOUT: [&str; 3] = ["chat", "completions", "schema"];

    fn names(command: &clap::Command, above: &str) -> Vec<String> {
        let of_one = |one: &clap::Command| {
            let name = format!("{above}{}", one.get_name());
            if one.has_subcommands() { names(one, &format!("{name}-")) } else { vec![name] }
        };
        command.get_subcommands().flat_map(of_one).collect()
    }

    #[test]
    fn every_command_has_a_schema() {
        let document = document();
        for name in names(&Cli::command(), "") {
            let is_there = document["$defs"].get(&name).is_some();
            assert_ne!(is_there, WITHOUT.contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        let targets: Vec<_> = text.split("\"$ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(targets.len() > 40, "{targets:?}");
        for target in targets {
            assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
        }
    }

    #[test]
    fn the_document_is_current() {
        let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        let kept = include_str!("../output.schema.json");
        assert!(text == kept, "run `cargo run --bin keypool schema > cli/output.schema.json`");
    }
}
