//! Upload sessions: chunks, order, status, cancel, repeats.

use crate::support::http::{Door, sha256, with_digest};

super::cases![
    end_5_chunks_in_order,
    end_5_chunks_out_of_order,
    end_5_one_stream_without_range,
    end_6_last_chunk_with_the_put,
    end_6_out_of_order_last_chunk,
    end_6_repeated_put_is_201,
    end_13_status,
    end_14_cancel,
    end_5_parallel_chunks_one_wins,
    end_5_sessions_belong_to_their_repository,
    end_5_malformed_ranges,
];

async fn end_5_chunks_in_order(door: &Door, repository: &str) {
    let bytes: Vec<u8> = (0..=255u8).cycle().take(3000).collect();
    let mut location = door.start_upload(repository).await;
    for (start, end) in [(0, 1000), (1000, 2000), (2000, 3000)] {
        let range = format!("{start}-{}", end - 1);
        let reply = door.patch(&location).header("content-range", &range).body(&bytes[start..end]).send().await;
        let reply = reply.expect_status(202).expect_header("range", &format!("0-{}", end - 1));
        location = reply.location();
    }
    let reply = door.put(with_digest(&location, &sha256(&bytes))).send().await.expect_status(201);
    door.get(reply.location()).send().await.expect_status(200).expect_body(&bytes);
}

async fn end_5_chunks_out_of_order(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    let reply = door.patch(&location).header("content-range", "5-9").body(b"56789").send().await;
    reply.expect_status(416);
    let reply = door.patch(&location).header("content-range", "0-4").body(b"01234").send().await;
    let location = reply.expect_status(202).location();
    let reply = door.patch(&location).header("content-range", "7-9").body(b"789").send().await.expect_status(416);
    reply.expect_header("range", "0-4");
    let reply = door.get(&location).send().await.expect_status(204).expect_header("range", "0-4");
    let location = reply.location();
    let reply = door.patch(&location).header("content-range", "5-9").body(b"56789").send().await;
    let location = reply.expect_status(202).location();
    door.put(with_digest(&location, &sha256(b"0123456789"))).send().await.expect_status(201);
}

async fn end_5_one_stream_without_range(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    let reply = door.patch(&location).body(b"one stream").send().await.expect_status(202);
    // The old location says byte 0 (P28): what it would append again is refused.
    door.patch(&location).body(b"one stream").send().await.expect_status(416).expect_header("range", "0-9");
    door.put(with_digest(&reply.location(), &sha256(b"one stream"))).send().await.expect_status(201);
}

async fn end_6_last_chunk_with_the_put(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    let reply = door.patch(&location).header("content-range", "0-4").body(b"01234").send().await.expect_status(202);
    let path = with_digest(&reply.location(), &sha256(b"0123456789"));
    let reply = door.put(path).header("content-range", "5-9").body(b"56789").send().await.expect_status(201);
    door.get(reply.location()).send().await.expect_status(200).expect_body("0123456789");
}

async fn end_6_out_of_order_last_chunk(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    let location = door.patch(&location).body(b"01234").send().await.expect_status(202).location();
    let path = with_digest(&location, &sha256(b"0123456789"));
    door.put(&path).header("content-range", "6-10").body(b"6789x").send().await.expect_status(416);
    let reply = door.get(&location).send().await.expect_status(204).expect_header("range", "0-4");
    let path = with_digest(&reply.location(), &sha256(b"0123456789"));
    door.put(path).header("content-range", "5-9").body(b"56789").send().await.expect_status(201);
}

async fn end_6_repeated_put_is_201(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    let path = with_digest(&location, &sha256(b"twice"));
    for _ in 0..2 {
        door.put(&path).body(b"twice").send().await.expect_status(201);
    }
    let other = with_digest(&location, &sha256(b"other"));
    let reply = door.put(other).body(b"other").send().await;
    assert!(matches!(reply.status, 400 | 404), "another digest on a finished session: {}", reply.status);
}

async fn end_13_status(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    door.get(&location).send().await.expect_status(204).expect_header("range", "0-0");
    let reply = door.patch(&location).body(b"x").send().await.expect_status(202).expect_header("range", "0-0");
    let reply = door.patch(reply.location()).body(b"yz").send().await.expect_status(202).expect_header("range", "0-2");
    door.get(reply.location()).send().await.expect_status(204).expect_header("range", "0-2");
    let unknown = format!("/v2/{repository}/blobs/uploads/00000000000000000000000000000000");
    door.get(unknown).send().await.expect_status(404).expect_code("BLOB_UPLOAD_UNKNOWN");
}

async fn end_14_cancel(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    door.delete(&location).send().await.expect_status(204);
    door.get(&location).send().await.expect_status(404).expect_code("BLOB_UPLOAD_UNKNOWN");
    door.patch(&location).body(b"late").send().await.expect_status(404);
    door.delete(&location).send().await.expect_status(404);
}

async fn end_5_parallel_chunks_one_wins(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    let chunks: Vec<Vec<u8>> = (0..4u8).map(|n| vec![n; 5000]).collect();
    let attempts =
        chunks.iter().map(|chunk| door.patch(&location).header("content-range", "0-4999").body(chunk).send());
    let replies = futures::future::join_all(attempts).await;
    let won: Vec<usize> = (0..4).filter(|at| replies[*at].status == 202).collect();
    assert_eq!(won.len(), 1, "{:?}", replies.iter().map(|reply| reply.status).collect::<Vec<_>>());
    assert!(replies.iter().all(|reply| matches!(reply.status, 202 | 416)));
    let digest = sha256(&chunks[won[0]]);
    let reply = door.put(with_digest(&replies[won[0]].location(), &digest)).send().await.expect_status(201);
    door.get(reply.location()).send().await.expect_status(200).expect_body(&chunks[won[0]]);
}

async fn end_5_sessions_belong_to_their_repository(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    let foreign = location.replace(repository, "conformance/somebody-else");
    door.get(&foreign).send().await.expect_status(404).expect_code("BLOB_UPLOAD_UNKNOWN");
    door.patch(&foreign).body(b"x").send().await.expect_status(404);
    door.delete(&foreign).send().await.expect_status(404);
    door.get(&location).send().await.expect_status(204);
}

async fn end_5_malformed_ranges(door: &Door, repository: &str) {
    let location = door.start_upload(repository).await;
    for range in ["5-3", "bytes 0-9/10", "0-18446744073709551615", "a-b", "0-", "-5"] {
        let reply = door.patch(&location).header("content-range", range).body(b"0123456789").send().await;
        assert!(matches!(reply.status, 400 | 416), "{range}: {}", reply.status);
    }
    let reply = door.patch(&location).header("content-range", "0-4").body(b"more than five").send().await;
    reply.expect_status(400).expect_code("SIZE_INVALID");
    door.get(&location).send().await.expect_status(204).expect_header("range", "0-0");
}
