//! Names, tags, digests, paths, listing: rows 1–19, 61, 63–65, 72, 75–79.

use super::Row;

const REFUSED: &[u16] = &[400, 404];
const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(super) fn rows() -> Vec<Row> {
    [repositories(), references(), requests(), ranges(), lists()].concat()
}

fn repositories() -> Vec<Row> {
    let mut rows = Vec::new();
    for name in ["A/b", "a..b", "-a", "a//b", "a/", "a__%20_b", "a___b"] {
        rows.push(Row::get(1, &format!("/v2/{name}/tags/list"), REFUSED));
        rows.push(Row::new(1, ("POST", &format!("/v2/{name}/blobs/uploads/")), "", b"", REFUSED));
    }
    rows.push(Row::get(2, &format!("/v2/{}/tags/list", "a".repeat(256)), REFUSED));
    rows.push(Row::get(2, &format!("/v2/{}a/tags/list", "a/".repeat(300)), REFUSED));
    for name in ["..", "%2e%2e", "%252e%252e%252f", "..%5c", "a/%2e%2e/b", "a%2F..%2Fb", "%2f%2fetc"] {
        rows.push(Row::get(3, &format!("/v2/{name}/tags/list"), REFUSED));
        rows.push(Row::get(4, &format!("/v2/{name}/blobs/sha256:{HEX}"), REFUSED));
    }
    for name in ["a%00b", "a%0d%0ab", "a%7fb", "a%c0%afb", "a%e2%80%aeb", "%d0%b0lpine", "e%cc%81"] {
        rows.push(Row::get(5, &format!("/v2/{name}/tags/list"), REFUSED));
        rows.push(Row::get(6, &format!("/v2/a/manifests/{name}"), REFUSED));
    }
    for name in ["blobs", "manifests", "uploads", "tags", "referrers", "a/blobs/uploads", "sha256", "v2"] {
        rows.push(Row::get(7, &format!("/v2/{name}/tags/list"), &[404]).needs_quorum());
        rows.push(Row::get(8, &format!("/v2/{name}/blobs/sha256:{HEX}"), &[404]).needs_quorum());
    }
    rows
}

fn references() -> Vec<Row> {
    let mut rows = Vec::new();
    let long = "t".repeat(129);
    for tag in [long.as_str(), ".a", "-a", "a%2Fb", "a:b", "a@b", "a+b"] {
        let target = format!("/v2/a/manifests/{tag}");
        rows.push(Row::get(9, &target, REFUSED));
        rows.push(Row::new(9, ("PUT", &target), "content-type: application/json\r\n", b"{}", REFUSED));
    }
    rows.push(Row::get(10, &format!("/v2/a/manifests/sha256-{HEX}"), &[404]).needs_quorum());
    let upper = HEX.to_uppercase();
    let digests = [
        format!("sha256:{upper}"),
        format!("sha256:{}", &HEX[1..]),
        format!("sha256:{HEX}0"),
        "sha256:".to_owned(),
        "sha256:../../x".to_owned(),
        "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709".to_owned(),
        format!("sha256+b64:{HEX}"),
        format!("SHA256:{HEX}"),
        format!("{}:{HEX}", "a".repeat(10_000)),
    ];
    for digest in &digests {
        rows.push(Row::get(11, &format!("/v2/a/blobs/{digest}"), REFUSED));
        rows.push(Row::get(12, &format!("/v2/a/manifests/{digest}"), REFUSED));
        rows.push(Row::get(79, &format!("/v2/a/referrers/{digest}"), REFUSED));
        rows.push(Row::new(12, ("DELETE", &format!("/v2/a/blobs/{digest}")), "", b"", REFUSED));
        rows.push(Row::new(12, ("POST", &format!("/v2/a/blobs/uploads/?digest={digest}")), "", b"x", REFUSED));
    }
    let both = format!("/v2/a/blobs/uploads/?digest=sha256:{HEX}&digest=sha256:{}", "0".repeat(64));
    rows.push(Row::new(15, ("POST", &both), "", b"x", &[400]));
    rows
}

fn requests() -> Vec<Row> {
    let parameters = (0..10_000).map(|n| format!("p{n}=1&")).collect::<String>();
    let mut rows = vec![
        Row::get(16, &format!("/v2/?{parameters}"), &[414, 431]),
        Row::get(16, &format!("/v2/{}", "a".repeat(64 * 1024)), &[414, 431]),
        Row::new(16, ("GET", "/v2/"), &format!("x-large: {}\r\n", "h".repeat(600_000)), b"", &[431, 0]),
        Row::new(16, ("GET", "/v2/"), &(0..2000).map(|n| format!("x-{n}: 1\r\n")).collect::<String>(), b"", &[431]),
        Row::raw(17, "no host", "GET /v2/ HTTP/1.1\r\nconnection: close\r\n\r\n", &[400]),
        Row::raw(17, "two hosts", "GET /v2/ HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", &[400]),
        Row::raw(17, "bad host", "GET /v2/ HTTP/1.1\r\nhost: a/..\r\nconnection: close\r\n\r\n", &[400]),
        Row::new(
            18,
            ("GET", "/v2/"),
            "x-forwarded-host: evil\r\nforwarded: host=evil\r\nx-remote-user: root\r\n",
            b"",
            &[200],
        ),
        Row::new(19, ("GET", "/v2/"), "x-http-method-override: DELETE\r\n", b"", &[200]),
        Row::get(72, "/v2/a/tags/list?last=%0d%0ax-injected:%201", &[400, 404]).needs_quorum(),
        Row::new(
            72,
            ("POST", &format!("/v2/a/blobs/uploads/?mount=sha256:{HEX}&from=%0d%0aevil")),
            "",
            b"",
            &[202, 400],
        )
        .needs_quorum(),
    ];
    for method in ["TRACE", "BREW", "OPTIONS"] {
        rows.push(Row::new(19, (method, "/v2/"), "", b"", &[405]));
    }
    rows.push(Row::new(19, ("POST", "/v2/a/tags/list"), "", b"", &[405]));
    rows.push(Row::new(61, ("POST", &format!("/v2/a/manifests/sha256:{HEX}")), "", b"", &[405]));
    rows.push(Row::new(64, ("GET", "/v2/"), "if-none-match: \"\\\x01junk,,,\r\nif-range: ???\r\n", b"", &[200, 400]));
    let accept = "a/b;q=nan,".repeat(10_000);
    rows.push(Row::new(65, ("GET", "/v2/"), &format!("accept: {accept}\r\n"), b"", &[200, 431]));
    rows
}

fn ranges() -> Vec<Row> {
    // The blob is not there: what is asked of it must not matter.
    let many = (0..1000).map(|n| format!("{n}-{n},")).collect::<String>();
    ["bytes=-0", "bytes=0-", "bytes=99999999999999999999-", "lines=1-2", "bytes=,,,", "bytes=5"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("bytes={many}")])
        .map(|range| {
            let target = format!("/v2/a/blobs/sha256:{}", "1".repeat(64));
            Row::new(63, ("GET", &target), &format!("range: {range}\r\n"), b"", &[400, 404, 416]).needs_quorum()
        })
        .collect()
}

fn lists() -> Vec<Row> {
    let mut rows = Vec::new();
    for query in ["n=-1", "n=abc", "n=1&n=2", "n=%00", "n=1.5"] {
        rows.push(Row::get(75, &format!("/v2/_catalog?{query}"), &[400]));
        rows.push(Row::get(75, &format!("/v2/a/tags/list?{query}"), &[400]));
    }
    for query in ["n=1000000000", "n=0", "n=9999999999999999999999", "last=zzz", "last=..%2f.."] {
        rows.push(Row::get(76, &format!("/v2/_catalog?{query}"), &[200, 400]).needs_quorum());
    }
    rows.push(Row::get(76, &format!("/v2/_catalog?last={}", "z".repeat(5000)), &[200, 400]).needs_quorum());
    rows.push(Row::get(76, "/v2/_catalog?last=%00", &[200, 400]).needs_quorum());
    let filter = format!("/v2/a/referrers/sha256:{HEX}?artifactType=a%0d%0a");
    rows.push(Row::get(79, &filter, &[200, 400]).needs_quorum());
    rows
}
