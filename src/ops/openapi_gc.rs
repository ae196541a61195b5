//! The part of the description that is about collection.

use serde_json::{Value, json};

use super::openapi::document;

/// `GET /api/v1/gc/plan`.
pub(super) fn plan() -> Value {
    let answer = json!({ "oneOf": [
        { "$ref": "#/components/schemas/CollectionPlan" },
        { "$ref": "#/components/schemas/Explained" },
    ] });
    let mut described = document("Says what a pass of collection would take now, or why something is kept.", &answer);
    described["parameters"] = json!([
        {
            "name": "limit", "in": "query", "schema": { "type": "integer", "minimum": 0 },
            "description": "Links listed at most; all are counted.",
        },
        {
            "name": "explain", "in": "query", "schema": { "type": "string" },
            "description": "A digest, or a repository and a digest: `app/web@sha256:…`. Then only that is told.",
        },
    ]);
    described["responses"]["400"] = json!({ "description": "A parameter is unknown or malformed." });
    described
}

/// `POST /api/v1/gc/run`.
pub(super) fn run() -> Value {
    document(
        "Makes the asked node begin a pass of collection; answered at its end, or after five seconds with `running`.",
        &json!({ "$ref": "#/components/schemas/Collection" }),
    )
}

/// `GET /api/v1/gc/run`.
pub(super) fn running() -> Value {
    document(
        "Shows the asked node's pass of collection under way, or its last one; null before the first.",
        &json!({ "oneOf": [{ "$ref": "#/components/schemas/Collection" }, { "type": "null" }] }),
    )
}

/// A pass.
pub(super) fn collection() -> Value {
    json!({
        "type": "object",
        "properties": {
            "running": { "type": "boolean" },
            "links": { "type": "integer", "description": "Links looked at." },
            "blobs": { "type": "integer", "description": "Blob links that went." },
            "manifests": { "type": "integer", "description": "Manifests that went." },
            "bytes": { "type": "integer", "description": "Of content that nothing links any more." },
            "ended_ms_ago": { "type": ["integer", "null"] },
            "failed": { "type": ["string", "null"], "description": "Why it stopped before its end." },
        },
    })
}

/// A plan.
pub(super) fn planned() -> Value {
    let integer = || json!({ "type": ["integer", "null"] });
    json!({
        "type": "object",
        "properties": {
            "fresh": { "type": "boolean", "description": "A quorum stands behind it." },
            "seen": { "type": "integer", "description": "Links looked at." },
            "blobs": { "type": "integer", "description": "Blob links that would go." },
            "manifests": { "type": "integer", "description": "Manifests that would go." },
            "bytes": { "type": "integer", "description": "Of content that nothing would link any more." },
            "spared": { "type": "integer", "description": "Links that nothing names and whose time is not over." },
            "spared_first_seconds": integer(),
            "spared_last_seconds": integer(),
            "links": { "type": "array", "items": {
                "type": "object",
                "properties": {
                    "repository": { "type": "string" },
                    "digest": { "type": "string" },
                    "kind": { "enum": ["blob", "manifest"] },
                    "size": { "type": "integer" },
                    "seconds_left": { "type": "integer", "description": "0: it would go now." },
                },
            } },
        },
    })
}

/// What keeps a digest.
pub(super) fn explained() -> Value {
    let text = || json!({ "type": "string" });
    json!({
        "type": "object",
        "properties": { "explained": { "type": "array", "items": {
            "type": "object",
            "properties": {
                "repository": text(),
                "kind": { "enum": ["blob", "manifest"] },
                "goes": { "type": "boolean" },
                "kept_by": { "enum": ["tag", "manifest", "subject", "subject to come", "lease", "upload", "policy"] },
                "tag": text(), "manifest": text(), "subject": text(), "policy": text(),
                "seconds_left": { "type": "integer" },
            },
        } } },
    })
}

/// The section of the cluster's status.
pub(super) fn status() -> Value {
    json!({
        "type": "object",
        "description": "Summed over the nodes that answered.",
        "properties": {
            "reaped_files": { "type": "integer", "description": "Removed from disks since the nodes started." },
            "reaped_bytes": { "type": "integer" },
            "waiting_files": { "type": "integer", "description": "Unlinked, and waiting for their grace." },
            "waiting_bytes": { "type": "integer" },
            "last": { "oneOf": [{ "$ref": "#/components/schemas/Collection" }, { "type": "null" }] },
            "audit_problems": { "type": ["integer", "null"], "description": "Wrong counts; 0 is right." },
        },
    })
}
