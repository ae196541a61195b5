//! The part of the interface about members, described.

use serde_json::{Map, Value, json};

use super::openapi::refused;

/// The paths about members.
pub(super) fn paths() -> Map<String, Value> {
    let forced = || json!({ "type": "object", "properties": { "force": { "type": "boolean" } } });
    let none = || json!({ "type": "object", "maxProperties": 0 });
    let by = json!({ "type": "object", "required": ["by"], "properties": { "by": { "type": "integer" } } });
    let to = json!({ "type": "object", "properties": { "to": { "type": ["integer", "null"] } } });
    let ids = || json!({ "type": "array", "items": { "type": "integer" } });
    let votes = json!({
        "type": "object",
        "description": "One of `add`, `remove` and `auto` (the cluster decides).",
        "properties": { "add": ids(), "remove": ids(), "auto": ids(), "force": { "type": "boolean" } },
    });
    let node = |verb: &str| format!("/api/v1/cluster/nodes/{{node}}/{verb}");
    let decided = [
        (node("out"), "Keeps a node from holding copies although it lives.", none(), true),
        (node("in"), "Lets a node hold copies again; one that is leaving stays.", none(), true),
        (node("decommission"), "Empties a node, then removes it.", forced(), true),
        (node("remove"), "Removes a dead node once all has its copies without it; forced: at once.", forced(), true),
        (node("replace"), "Has `by` take the node's vote and content, then removes it.", by, true),
        ("/api/v1/cluster/voters".to_owned(), "Gives votes, takes them, or leaves them to the cluster.", votes, false),
        ("/api/v1/cluster/leader".to_owned(), "Moves leadership, to `to` if it is named.", to, false),
    ];
    let mut paths: Map<String, Value> = decided
        .into_iter()
        .map(|(path, summary, body, of_node)| (path, json!({ "post": post(summary, &body, of_node) })))
        .collect();
    let losses = json!({
        "summary": "Lists what is on no other node for certain, and would be lost with this one.",
        "parameters": [parameter()],
        "responses": { "200": { "description": "How many, and the first of them.", "content": {
            "application/json": { "schema": { "type": "object", "properties": {
                "count": { "type": "integer" },
                "digests": { "type": "array", "items": { "type": "string" } },
            } } },
        } } },
    });
    paths.insert(node("losses"), json!({ "get": losses }));
    paths.extend(tokens());
    paths
}

/// The paths about join tokens.
fn tokens() -> [(String, Value); 2] {
    let create = json!({
        "type": "object",
        "properties": {
            "ttl_seconds": { "type": "integer", "minimum": 1, "default": 3600 },
            "role": { "enum": ["voter", "learner"], "default": "voter" },
        },
    });
    let mut create = post("Makes a token by which one node may join; the answer shows it this once.", &create, false);
    create["responses"]["200"]["content"]["application/json"]["schema"] = token(true);
    let listed = json!({ "type": "object", "properties": { "tokens": { "type": "array", "items": token(false) } } });
    let list = json!({
        "summary": "Lists the tokens, without what would let anybody use them.",
        "responses": { "200": {
            "description": "The tokens.", "content": { "application/json": { "schema": listed } },
        } },
    });
    let revoke = json!({
        "summary": "Takes a token back.",
        "parameters": [{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }],
        "responses": {
            "200": { "description": "It is good for nothing any more." },
            "404": { "description": "There is no such token." },
        },
    });
    [
        ("/api/v1/cluster/tokens".to_owned(), json!({ "get": list, "post": create })),
        ("/api/v1/cluster/tokens/{id}".to_owned(), json!({ "delete": revoke })),
    ]
}

fn token(made: bool) -> Value {
    let mut properties = json!({
        "id": { "type": "string" },
        "role": { "enum": ["voter", "learner"] },
        "expires_in_seconds": { "type": "integer" },
    });
    if made {
        properties["token"] = json!({ "type": "string" });
    } else {
        properties["expired"] = json!({ "type": "boolean" });
        properties["used_by"] = json!({ "type": ["integer", "null"], "description": "A node's id." });
    }
    json!({ "type": "object", "properties": properties })
}

fn parameter() -> Value {
    json!({ "name": "node", "in": "path", "required": true, "schema": { "type": "integer" } })
}

fn post(summary: &str, body: &Value, of_node: bool) -> Value {
    json!({
        "summary": summary,
        "parameters": if of_node { vec![parameter()] } else { Vec::new() },
        "requestBody": { "content": { "application/json": { "schema": body } } },
        "responses": {
            "200": { "description": "It is agreed; every later leader carries it out.", "content": {
                "application/json": { "schema": { "type": "object" } },
            } },
            "400": refused("The body is not the expected JSON."),
            "404": refused("There is no such node."),
            "409": refused("It would be unsafe, or another change came between; `code` says which, and `digests` what would be lost."),
            "503": refused("No quorum."),
        },
    })
}

/// What operators have decided about a node.
pub(super) fn plan() -> Value {
    json!({
        "type": "object",
        "description": "What operators have decided.",
        "properties": {
            "vote": { "enum": ["auto", "always", "never"] },
            "held_out": { "type": "boolean" },
            "leaves": { "enum": ["when_empty", "now", null] },
        },
    })
}

/// How far a leaving node is.
pub(super) fn drain() -> Value {
    json!({
        "type": ["object", "null"],
        "description": "How far a leaving node is with being empty, as the leader sees it.",
        "properties": {
            "total": { "type": "integer" },
            "left": { "type": "integer", "description": "Not yet where it belongs without this node." },
            "left_bytes": { "type": "integer" },
            "only_here": { "type": "integer", "description": "On no other node." },
            "uploads": { "type": "integer", "description": "Uploads that keep this node: under way, or idle." },
            "idle_uploads": {
                "type": "integer",
                "description": "Of those, idle ones with bytes on no node that stays. They keep the node until they end or expire.",
            },
        },
    })
}
