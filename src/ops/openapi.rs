//! The administration interface, described.

use serde_json::{Value, json};

use super::openapi_gc;
use super::openapi_members as members;

/// Describes `/api/v1` and its neighbours as `OpenAPI` 3.1.
pub(super) fn description() -> Value {
    let mut description = own_paths();
    if let Some(paths) = description["paths"].as_object_mut() {
        paths.extend(members::paths());
    }
    description
}

fn own_paths() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Rafthold administration",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What is not known is null.",
        },
        "paths": {
            "/livez": { "get": plain("Says that the process lives.", "It lives.") },
            "/readyz": { "get": plain("Says whether the node should be sent requests.", "It is ready.") },
            "/metrics": { "get": plain("Prints metrics in the OpenMetrics text format.", "The metrics.") },
            "/api/v1/openapi.json": { "get": document("Describes this interface.", &json!({ "type": "object" })) },
            "/api/v1/blobs/{digest}/verify": { "post": verify() },
            "/api/v1/gc/plan": { "get": openapi_gc::plan() },
            "/api/v1/gc/run": { "get": openapi_gc::running(), "post": openapi_gc::run() },
            "/api/v1/cluster/status": {
                "get": document("Shows the cluster as this node sees it.", &json!({ "$ref": "#/components/schemas/Status" })),
            },
            "/api/v1/cluster/policy": {
                "get": document("Shows how many copies of each blob there should be.", &json!({ "$ref": "#/components/schemas/AgreedPolicy" })),
                "put": set_policy(),
            },
        },
        "components": {
            "securitySchemes": { "basic": { "type": "http", "scheme": "basic" } },
            "schemas": {
                "Status": status(),
                "Node": node(),
                "Policy": policy(),
                "AgreedPolicy": agreed_policy(),
                "Error": error(),
                "Collection": openapi_gc::collection(),
                "CollectionPlan": openapi_gc::planned(),
                "Explained": openapi_gc::explained(),
            },
        },
        "security": [{ "basic": [] }, {}],
    })
}

fn plain(summary: &str, meaning: &str) -> Value {
    json!({
        "summary": summary,
        "responses": {
            "200": { "description": meaning, "content": { "text/plain": {} } },
            "503": { "description": "The node is starting or stopping.", "content": { "text/plain": {} } },
        },
    })
}

pub(super) fn document(summary: &str, schema: &Value) -> Value {
    json!({
        "summary": summary,
        "responses": {
            "200": { "description": "The document.", "content": { "application/json": { "schema": schema } } },
            "401": refused("A login is needed."),
            "403": refused("The login does not suffice."),
            "503": refused("The node is starting."),
        },
    })
}

/// An answer that says why not.
pub(super) fn refused(meaning: &str) -> Value {
    json!({
        "description": meaning,
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } },
    })
}

fn set_policy() -> Value {
    let mut operation = document(
        "Agrees on how many copies of each blob there should be: replaces the whole policy.",
        &json!({ "$ref": "#/components/schemas/AgreedPolicy" }),
    );
    operation["requestBody"] = json!({
        "required": true,
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Policy" } } },
    });
    for (status, meaning) in [
        ("400", "The policy makes no sense, or asks for fewer copies than this node waits for at a push."),
        ("409", "A node's binary is too old for agreed policies."),
        ("503", "The node is starting, or no leader with a quorum took it in time."),
    ] {
        operation["responses"][status] = json!({
            "description": meaning,
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } },
        });
    }
    operation
}

fn policy() -> Value {
    let count = || json!({ "type": "integer", "minimum": 1, "maximum": 16 });
    json!({
        "type": "object",
        "required": ["copies"],
        "additionalProperties": false,
        "properties": {
            "copies": count(),
            "regions": {
                "type": "object",
                "additionalProperties": count(),
                "description": "Copies in each region at least; what they leave of `copies` goes wherever it spreads best.",
            },
        },
    })
}

fn agreed_policy() -> Value {
    json!({
        "type": "object",
        "required": ["copies", "regions", "agreed", "index"],
        "properties": {
            "copies": { "type": "integer" },
            "regions": { "type": "object", "additionalProperties": { "type": "integer" } },
            "agreed": { "type": "boolean", "description": "False: nothing is agreed on, each node goes by its own configuration." },
            "index": { "type": "integer", "description": "The log index that last changed what placement depends on." },
        },
    })
}

fn status() -> Value {
    json!({
        "type": "object",
        "required": ["cluster_id", "leader", "term", "nodes", "blobs"],
        "properties": {
            "cluster_id": { "type": "string", "pattern": "^[0-9a-f]{32}$" },
            "leader": { "type": ["integer", "null"], "description": "A node's id." },
            "term": { "type": "integer" },
            "version": { "type": "string" },
            "open": { "type": "boolean", "description": "The first nodes are all here: writes are taken." },
            "asked": { "type": "integer", "description": "The node that answers." },
            "policy": { "$ref": "#/components/schemas/Policy" },
            "nodes": { "type": "array", "items": { "$ref": "#/components/schemas/Node" } },
            "blobs": {
                "type": "object",
                "properties": {
                    "under_replicated": { "type": ["integer", "null"] },
                    "over_replicated": { "type": ["integer", "null"] },
                    "lost": { "type": ["integer", "null"] },
                    "misplaced": {
                        "type": ["integer", "null"],
                        "description": "Enough copies, but not all of them on the nodes that should hold them.",
                    },
                    "linked": { "type": ["integer", "null"] },
                },
            },
            "repair": {
                "type": "object",
                "properties": {
                    "queue": { "type": "integer" },
                    "running": { "type": "integer" },
                    "fetched": { "type": "integer", "description": "Since the nodes started." },
                    "bytes_left": { "type": "integer" },
                    "bytes_per_second": { "type": "integer", "description": "Lately." },
                    "eta_seconds": {
                        "type": ["integer", "null"],
                        "description": "Until the last node that answered has all it should hold.",
                    },
                },
            },
            "gc": openapi_gc::status(),
            "warnings": { "type": "array", "items": { "type": "string" } },
        },
    })
}

fn node() -> Value {
    let integer = || json!({ "type": ["integer", "null"] });
    json!({
        "type": "object",
        "required": ["id", "name", "role", "state", "applied", "state_hash"],
        "properties": {
            "id": { "type": "integer" },
            "name": { "type": "string" },
            "zone": { "type": "string" },
            "region": { "type": "string" },
            "api": { "type": "string", "format": "uri" },
            "rpc": { "type": "string" },
            "role": { "enum": ["voter", "learner"] },
            "state": { "enum": ["leader", "follower", "candidate", "unreachable"] },
            "applied": integer(),
            "state_hash": { "type": ["string", "null"], "pattern": "^[0-9a-f]{32}$" },
            "last_log": integer(),
            "snapshot": integer(),
            "term": integer(),
            "leader": integer(),
            "fresh": { "type": ["boolean", "null"] },
            "version": { "type": ["string", "null"] },
            "pid": integer(),
            "uptime_seconds": integer(),
            "placement": { "enum": ["in", "out", "decommissioned"] },
            "gossip": { "enum": ["live", "suspect", "dead", null] },
            "gossip_heard_ms": integer(),
            "gossip_reason": { "type": ["string", "null"] },
            "gossip_reached_by": { "type": ["array", "null"], "items": { "type": "integer" } },
            "gossip_missed_by": { "type": ["array", "null"], "items": { "type": "integer" } },
            "known_blobs": { "type": ["integer", "null"], "description": "Blobs that the asked node was told it holds." },
            "known_whole": { "type": "boolean", "description": "The asked node was told all that it holds." },
            "blobs": integer(),
            "blob_bytes": integer(),
            "extents": integer(),
            "index_complete": { "type": ["boolean", "null"] },
            "refuses_writes": { "type": ["boolean", "null"] },
            "disk_suspect": { "type": ["boolean", "null"] },
            "free_bytes": integer(),
            "room_bytes": integer(),
            "log_waits": { "type": ["boolean", "null"], "description": "The log has no space on a full disk." },
            "has_reserve": { "type": ["boolean", "null"], "description": "Space is put by for the log." },
            "compared": { "type": ["boolean", "null"] },
            "repair_queue": integer(),
            "repair_bytes_left": integer(),
            "repair_bytes_per_second": integer(),
            "repair_eta_seconds": integer(),
            "certificate_seconds_left": integer(),
            "can_sign": { "type": ["boolean", "null"], "description": "It can let nodes in and renew certificates." },
            "plan": members::plan(),
            "drain": members::drain(),
            "scrub": scrub(),
        },
    })
}

fn verify() -> Value {
    let copy = json!({
        "type": "object",
        "properties": {
            "id": { "type": "integer" },
            "name": { "type": ["string", "null"] },
            "wanted": { "type": "boolean", "description": "Placement wants a copy there." },
            "verdict": { "enum": ["good", "missing", "quarantined", "unreadable", "unreachable"] },
        },
    });
    let answer = json!({
        "type": "object",
        "properties": {
            "digest": { "type": "string" },
            "size": { "type": "integer" },
            "nodes": { "type": "array", "items": copy },
        },
    });
    let summary = "Hashes copies of a linked blob again; bad ones are set aside and fetched anew.";
    let mut operation = document(summary, &answer);
    operation["parameters"] =
        json!([{ "name": "digest", "in": "path", "required": true, "schema": { "type": "string" } }]);
    let all = json!({ "type": "boolean", "description": "Every node, not only the one that is asked." });
    let body = json!({ "type": "object", "properties": { "all": all }, "additionalProperties": false });
    operation["requestBody"] = json!({ "content": { "application/json": { "schema": body } } });
    operation
}

fn scrub() -> Value {
    json!({
        "type": ["object", "null"],
        "description": "Hashing again what lies on the node, since it started.",
        "properties": {
            "checked": { "type": "integer" },
            "bad": { "type": "integer" },
            "percent": { "type": "integer", "description": "Of the pass under way." },
            "last_pass": { "type": ["integer", "null"], "description": "When it ended, in seconds of Unix time." },
            "quarantined": { "type": "integer", "description": "Damaged copies kept for a look." },
            "quarantined_bytes": { "type": "integer" },
        },
    })
}

fn error() -> Value {
    json!({
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": { "code": { "type": "string" }, "message": { "type": "string" } },
            },
        },
    })
}
