//! HTTP framing: rows 21, 66, 67, 71, 74.

use super::Row;

const UPLOAD: &str = "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: r\r\n";
const MANIFEST: &str =
    "PUT /v2/a/manifests/t HTTP/1.1\r\nhost: r\r\ncontent-type: application/vnd.oci.image.index.v1+json\r\n";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::raw(
            66,
            "length and chunked",
            format!("{UPLOAD}content-length: 5\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n"),
            &[400],
        ),
        Row::raw(66, "two lengths", format!("{UPLOAD}content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"), &[400]),
        Row::raw(66, "negative length", format!("{UPLOAD}content-length: -5\r\n\r\n"), &[400]),
        Row::raw(
            66,
            "obfuscated encoding",
            format!("{UPLOAD}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
            &[400, 501],
        ),
        Row::raw(
            66,
            "negative chunk",
            format!("{MANIFEST}transfer-encoding: chunked\r\nconnection: close\r\n\r\n-1\r\nx\r\n0\r\n\r\n"),
            &[400, 0],
        ),
        Row::raw(
            66,
            "huge chunk",
            format!(
                "{MANIFEST}transfer-encoding: chunked\r\nconnection: close\r\n\r\nffffffffffffffffff\r\nx\r\n0\r\n\r\n"
            ),
            &[400, 413, 0],
        ),
        Row::raw(66, "bare line feeds and spaces", "GET  /v2/ HTTP/1.1\nhost: r\n\n", &[400, 0]),
        Row::raw(66, "no HTTP at all", "\u{16}\u{3}\u{1}\u{2}hello, this is TLS\r\n\r\n", &[400, 0]),
        Row::raw(
            74,
            "HTTP/2 asked for by upgrade",
            "GET /livez HTTP/1.1\r\nhost: r\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
            &[200],
        ),
        Row::raw(
            17,
            "absolute form",
            "GET http://other/v2/ HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n",
            &[200, 400],
        ),
        Row::raw(
            19,
            "CONNECT",
            "CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\nconnection: close\r\n\r\n",
            &[400, 404, 405],
        ),
        Row::raw(
            67,
            "continue expected for what is too large",
            format!("{MANIFEST}expect: 100-continue\r\ncontent-length: 99999999\r\nconnection: close\r\n\r\n"),
            &[413],
        ),
    ]
}
