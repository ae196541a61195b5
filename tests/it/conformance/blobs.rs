//! Blobs: pull, HEAD, ranges, mounts, the ways of pushing one whole.

use rafthold::oci::{Algorithm, Digest};

use crate::support::http::{Door, sha256, with_digest};

super::cases![
    end_1_base_answers,
    end_2_pull_and_head,
    end_2_unknown_is_404,
    end_2_single_ranges,
    end_2_bad_ranges_are_416,
    end_2_several_ranges,
    end_2_conditional,
    end_4b_monolithic_post,
    end_4a_post_then_put,
    end_4b_wrong_digest_is_400,
    end_4_malformed_digest_is_400,
    end_4_sha512_with_and_without_algorithm,
    end_4_zero_bytes,
    end_11_mount_with_from,
    end_11_mount_without_from,
    end_11_mount_of_nothing_is_202,
];

async fn end_1_base_answers(door: &Door, _: &str) {
    let reply = door.get("/v2/").send().await.expect_status(200);
    reply.expect_header("docker-distribution-api-version", "registry/2.0");
    door.head("/v2/").send().await.expect_status(200);
}

async fn end_2_pull_and_head(door: &Door, repository: &str) {
    let bytes = vec![7; 2048];
    let digest = door.push_blob(repository, &bytes).await;
    let path = format!("/v2/{repository}/blobs/{digest}");
    let reply = door.get(&path).send().await.expect_status(200).expect_body(&bytes);
    reply.expect_header("docker-content-digest", &digest.to_string()).expect_header("content-length", "2048");
    let reply = door.head(&path).send().await.expect_status(200).expect_header("content-length", "2048");
    reply.expect_header("docker-content-digest", &digest.to_string()).expect_header("accept-ranges", "bytes");
}

async fn end_2_unknown_is_404(door: &Door, repository: &str) {
    let path = format!("/v2/{repository}/blobs/{}", sha256(b"never pushed"));
    door.get(&path).send().await.expect_status(404).expect_code("BLOB_UNKNOWN");
    door.head(&path).send().await.expect_status(404);
    let bad = door.get(format!("/v2/{repository}/blobs/sha256:baddigeststring")).send().await;
    assert!(matches!(bad.status, 400 | 404), "{}", bad.status);
}

async fn end_2_single_ranges(door: &Door, repository: &str) {
    let bytes: Vec<u8> = (0..2048u32).map(|n| (n % 251) as u8).collect();
    let digest = door.push_blob(repository, &bytes).await;
    let path = format!("/v2/{repository}/blobs/{digest}");
    for (range, start, end) in [
        ("bytes=0-99", 0, 100),
        ("bytes=100-199", 100, 200),
        ("bytes=2000-", 2000, 2048),
        ("bytes=-48", 2000, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-", 0, 2048),
        ("bytes=-5000", 0, 2048),
    ] {
        let reply = door.get(&path).header("range", range).send().await.expect_status(206);
        let reply = reply.expect_header("content-range", &format!("bytes {start}-{}/2048", end - 1));
        reply.expect_header("content-length", &(end - start).to_string()).expect_body(&bytes[start..end]);
    }
}

async fn end_2_bad_ranges_are_416(door: &Door, repository: &str) {
    let digest = door.push_blob(repository, &vec![1; 2048]).await;
    let path = format!("/v2/{repository}/blobs/{digest}");
    for range in ["bytes=500-0", "bytes=5000-10000"] {
        let reply = door.get(&path).header("range", range).send().await.expect_status(416);
        reply.expect_header("content-range", "bytes */2048");
    }
}

async fn end_2_several_ranges(door: &Door, repository: &str) {
    let bytes: Vec<u8> = (0..100).collect();
    let digest = door.push_blob(repository, &bytes).await;
    let reply = door.get(format!("/v2/{repository}/blobs/{digest}")).header("range", "bytes=0-4,90-99").send().await;
    let reply = reply.expect_status(206);
    let kind = reply.header("content-type").unwrap().to_owned();
    assert!(kind.starts_with("multipart/byteranges; boundary="), "{kind}");
    assert_eq!(reply.header("content-length").unwrap(), reply.body.len().to_string());
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(text.contains("bytes 0-4/100") && text.contains("bytes 90-99/100"), "{text}");
}

async fn end_2_conditional(door: &Door, repository: &str) {
    let digest = door.push_blob(repository, b"conditional").await;
    let path = format!("/v2/{repository}/blobs/{digest}");
    let reply = door.get(&path).send().await.expect_status(200);
    let etag = reply.header("etag").unwrap().to_owned();
    door.get(&path).header("if-none-match", &etag).send().await.expect_status(304).expect_body("");
    door.get(&path).header("if-none-match", "\"other\"").send().await.expect_status(200);
}

async fn end_4b_monolithic_post(door: &Door, repository: &str) {
    let bytes = b"monolithic";
    let digest = sha256(bytes);
    let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    let reply = door.post(&path).header("content-type", "application/octet-stream").body(bytes).send().await;
    let reply = reply.expect_status(201).expect_header("docker-content-digest", &digest.to_string());
    let pulled = door.get(reply.location()).send().await.expect_status(200).expect_body(bytes);
    pulled.expect_header("content-length", &bytes.len().to_string());
}

async fn end_4a_post_then_put(door: &Door, repository: &str) {
    let bytes = b"post then put";
    let digest = sha256(bytes);
    let location = door.start_upload(repository).await;
    let reply = door.put(with_digest(&location, &digest)).body(bytes).send().await.expect_status(201);
    door.get(reply.location()).send().await.expect_status(200).expect_body(bytes);
}

async fn end_4b_wrong_digest_is_400(door: &Door, repository: &str) {
    let wrong = sha256(b"something else");
    let path = format!("/v2/{repository}/blobs/uploads/?digest={wrong}");
    door.post(path).body(b"bytes").send().await.expect_status(400).expect_code("DIGEST_INVALID");
    let location = door.start_upload(repository).await;
    let reply = door.put(with_digest(&location, &wrong)).body(b"bytes").send().await;
    reply.expect_status(400).expect_code("DIGEST_INVALID");
    let location = door.start_upload(repository).await;
    let location = door.patch(&location).body(b"bytes").send().await.expect_status(202).location();
    door.put(with_digest(&location, &wrong)).send().await.expect_status(400).expect_code("DIGEST_INVALID");
    // The session is still open (P27): the right digest closes it.
    door.put(with_digest(&location, &sha256(b"bytes"))).send().await.expect_status(201);
    door.head(format!("/v2/{repository}/blobs/{wrong}")).send().await.expect_status(404);
}

async fn end_4_malformed_digest_is_400(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    let separator = if location.contains('?') { '&' } else { '?' };
    for bad in ["sha256:baddigeststring", "md5:d41d8cd98f00b204e9800998ecf8427e", ""] {
        let reply = door.put(format!("{location}{separator}digest={bad}")).body(b"x").send().await;
        reply.expect_status(400).expect_code("DIGEST_INVALID");
    }
}

async fn end_4_sha512_with_and_without_algorithm(door: &Door, repository: &str) {
    for (bytes, query) in [(&b"sha512 one"[..], "?digest-algorithm=sha512"), (b"sha512 two", "")] {
        let digest = Digest::of(Algorithm::Sha512, bytes);
        let reply = door.post(format!("/v2/{repository}/blobs/uploads/{query}")).send().await.expect_status(202);
        let reply = door.patch(reply.location()).body(bytes).send().await.expect_status(202);
        let reply = door.put(with_digest(&reply.location(), &digest)).send().await.expect_status(201);
        let reply = reply.expect_header("docker-content-digest", &digest.to_string());
        door.get(reply.location()).send().await.expect_status(200).expect_body(bytes);
        // The same bytes under the other algorithm were never pushed.
        door.head(format!("/v2/{repository}/blobs/{}", sha256(bytes))).send().await.expect_status(404);
    }
}

async fn end_4_zero_bytes(door: &Door, repository: &str) {
    let digest = sha256(b"");
    let location = door.start_upload(repository).await;
    door.put(with_digest(&location, &digest)).send().await.expect_status(201);
    let path = format!("/v2/{repository}/blobs/{digest}");
    door.get(&path).send().await.expect_status(200).expect_header("content-length", "0").expect_body("");
    door.head(&path).send().await.expect_status(200).expect_header("content-length", "0");
}

async fn end_11_mount_with_from(door: &Door, repository: &str) {
    let source = format!("{repository}/source");
    let digest = door.push_blob(&source, b"mounted").await;
    let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}&from={source}");
    let reply = door.post(path).send().await.expect_status(201);
    door.get(reply.location()).send().await.expect_status(200).expect_body("mounted");
}

async fn end_11_mount_without_from(door: &Door, repository: &str) {
    let digest = door.push_blob(&format!("{repository}/source"), b"mounted from anywhere").await;
    let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}");
    let reply = door.post(path).send().await.expect_status(201);
    door.get(reply.location()).send().await.expect_status(200).expect_body("mounted from anywhere");
}

async fn end_11_mount_of_nothing_is_202(door: &Door, repository: &str) {
    let digest = sha256(b"nobody has this");
    for from in ["&from=no/such/repository", ""] {
        let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}{from}");
        let location = door.post(path).send().await.expect_status(202).location();
        door.delete(location).send().await.expect_status(204);
    }
}
