//! Manifests and uploads: rows 13–15, 20–60.

use super::Row;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn put(number: u32, kind: &str, body: impl AsRef<[u8]>, expected: &'static [u16]) -> Row {
    let headers = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
    Row::new(number, ("PUT", "/v2/a/manifests/t"), &headers, body.as_ref(), expected)
}

fn descriptor(digest: &str, size: &str) -> String {
    format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}"#)
}

fn image(extra: &str) -> String {
    let config = descriptor(EMPTY, "0");
    format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[]{extra}}}"#)
}

pub(super) fn rows() -> Vec<Row> {
    [documents(), fields(), uploads()].concat()
}

fn documents() -> Vec<Row> {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let keys = (0..200_000).map(|n| format!("\"k{n}\":1,")).collect::<String>();
    let layers = vec![descriptor(EMPTY, "0"); 20_000].join(",");
    let mut rows = vec![
        Row::new(
            14,
            ("PUT", &format!("/v2/a/manifests/{EMPTY}")),
            &format!("content-type: {MANIFEST}\r\n"),
            b"{}",
            &[400],
        ),
        put(20, MANIFEST, vec![b' '; (4 << 20) + 1], &[413]),
        Row::raw(
            20,
            "1 GiB announced",
            format!(
                "PUT /v2/a/manifests/t HTTP/1.1\r\nhost: r\r\ncontent-type: {MANIFEST}\r\ncontent-length: 1073741824\r\nconnection: close\r\n\r\n"
            ),
            &[413],
        ),
        put(22, MANIFEST, format!("{{\"a\":{deep}}}"), &[400]),
        put(22, MANIFEST, format!("{{{keys}\"z\":1}}"), &[400]),
        put(22, MANIFEST, format!("{{\"schemaVersion\":2,\"layers\":[{layers}]}}"), &[400]),
        put(23, MANIFEST, image(r#","layers":[]"#), &[400]),
        put(23, MANIFEST, image(r#","x":{"a":1,"a":2}"#), &[400]),
        put(24, MANIFEST, image(r#","Layers":[]"#), &[400]),
        put(24, MANIFEST, image(r#","MEDIATYPE":"x"#), &[400]),
        put(25, MANIFEST, image(r#","manifests":[]"#), &[400]),
        put(25, MANIFEST, image(r#","fsLayers":[]"#), &[400]),
        put(26, INDEX, image(""), &[400]),
        put(26, "text/html", image(""), &[400]),
        put(26, "", r#"{"schemaVersion":2}"#, &[400]),
        put(27, &"x".repeat(8192), image(""), &[400]),
        put(29, MANIFEST, format!("\u{feff}{}", image("")), &[400]),
        put(29, MANIFEST, format!("{} trailing", image("")), &[400]),
        put(29, MANIFEST, format!("{0}{0}", image("")), &[400]),
        put(29, MANIFEST, image(r#","x":NaN"#), &[400]),
        put(29, MANIFEST, image(r#","x":"\ud800""#), &[400]),
        put(29, MANIFEST, b"\xff\xfe{\x00}\x00", &[400]),
        put(29, MANIFEST, "", &[400]),
        put(42, "application/vnd.docker.distribution.manifest.v1+prettyjws", "{}", &[400]),
        put(42, "", r#"{"schemaVersion":1,"name":"a","tag":"t","fsLayers":[],"history":[]}"#, &[400]),
    ];
    for encoding in ["gzip", "deflate", "br"] {
        let headers = format!("content-type: {MANIFEST}\r\ncontent-encoding: {encoding}\r\n");
        rows.push(Row::new(28, ("PUT", "/v2/a/manifests/t"), &headers, image("").as_bytes(), &[400, 415]));
    }
    rows
}

fn fields() -> Vec<Row> {
    let mut rows = Vec::new();
    for size in ["-1", "9007199254740993", "18446744073709551616", "1.5", "\"3\"", "null"] {
        let body = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[]}}"#,
            descriptor(EMPTY, size)
        );
        rows.push(put(30, MANIFEST, body, &[400]));
    }
    for digest in ["sha256:xyz", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../etc/passwd", ""] {
        let layer = descriptor(digest, "1");
        rows.push(put(
            31,
            MANIFEST,
            format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{layer},"layers":[]}}"#),
            &[400],
        ));
    }
    let children = vec![descriptor(EMPTY, "0"); 25_000].join(",");
    rows.push(put(
        34,
        INDEX,
        format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{children}]}}"#),
        &[400, 413],
    ));
    let data = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"a/b","digest":"{EMPTY}","size":0,"data":"bm90IGVtcHR5"}},"layers":[]}}"#
    );
    rows.push(put(36, MANIFEST, data, &[400]));
    rows.push(put(38, MANIFEST, image(r#","artifactType":"not a media type""#), &[400]));
    rows.push(put(38, MANIFEST, image(&format!(r#","artifactType":"a/{}""#, "b".repeat(1 << 20))), &[400]));
    let tags = (0..1000).map(|n| format!("tag=t{n}&")).collect::<String>();
    let target = format!("/v2/a/manifests/{EMPTY}?{tags}");
    rows.push(Row::new(43, ("PUT", &target), &format!("content-type: {MANIFEST}\r\n"), image("").as_bytes(), &[400]));
    rows
}

fn uploads() -> Vec<Row> {
    let mut rows = Vec::new();
    let long = "f".repeat(1 << 13);
    for id in ["..%2f..%2fetc", long.as_str(), "not-an-id", "00000000000000000000000000000000"] {
        let target = format!("/v2/a/blobs/uploads/{id}");
        for method in ["GET", "PATCH", "DELETE"] {
            rows.push(Row::new(47, (method, &target), "", b"", &[400, 404]).needs_quorum());
        }
        let closing = format!("{target}?digest={EMPTY}");
        rows.push(Row::new(46, ("PUT", &closing), "", b"", &[400, 404]).needs_quorum());
        let state = format!("{target}?offset=99999999999999999999&_state=junk");
        rows.push(Row::new(48, ("PATCH", &state), "", b"x", &[400, 404, 416]).needs_quorum());
        for range in ["5-3", "bytes 0-9/10", "0-18446744073709551615", "x"] {
            let headers = format!("content-range: {range}\r\n");
            rows.push(Row::new(49, ("PATCH", &target), &headers, b"x", &[400, 404, 416]).needs_quorum());
        }
    }
    let wrong = format!("/v2/a/blobs/uploads/?digest=sha256:{}", "0".repeat(64));
    rows.push(Row::new(54, ("POST", &wrong), "", b"bytes", &[400]).needs_quorum());
    let mount = format!("/v2/a/blobs/uploads/?mount=sha256:{}", "0".repeat(64));
    for from in ["", "&from=a", "&from=no/such", "&from=NOT_VALID"] {
        rows.push(Row::new(59, ("POST", &format!("{mount}{from}")), "", b"", &[202, 400]).needs_quorum());
        rows.push(Row::new(60, ("POST", &format!("{mount}{from}&junk=1")), "", b"", &[202, 400]).needs_quorum());
    }
    rows
}
