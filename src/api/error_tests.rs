//! The table of statuses and codes.

use axum::body::Body;
use http::HeaderMap;
use http_body_util::BodyExt;

use super::*;

async fn told(failure: Failure) -> (StatusCode, HeaderMap, Value) {
    let (head, body) = failure.into_response("0123456789abcdef").into_parts();
    let body = Body::collect(body).await.unwrap().to_bytes();
    (head.status, head.headers, serde_json::from_slice(&body).unwrap())
}

fn digest() -> Digest {
    Digest::of(crate::oci::Algorithm::Sha256, b"")
}

#[tokio::test]
async fn each_error_has_its_status_and_code() {
    let table = [
        (Error::NameUnknown, 404, "NAME_UNKNOWN"),
        (Error::ManifestUnknown, 404, "MANIFEST_UNKNOWN"),
        (Error::BlobUnknown, 404, "BLOB_UNKNOWN"),
        (Error::UploadUnknown, 404, "BLOB_UPLOAD_UNKNOWN"),
        (Error::RangeInvalid { length: 7 }, 416, "BLOB_UPLOAD_INVALID"),
        (Error::DigestMismatch { expected: digest(), actual: digest() }, 400, "DIGEST_INVALID"),
        (Error::SizeInvalid { expected: 1, actual: 2 }, 400, "SIZE_INVALID"),
        (Error::ManifestInvalid(ManifestError::Unsupported), 400, "UNSUPPORTED"),
        (Error::ManifestInvalid(ManifestError::Invalid("x")), 400, "MANIFEST_INVALID"),
        (Error::ManifestReferencesUnknown { digests: vec![digest()] }, 400, "MANIFEST_BLOB_UNKNOWN"),
        (Error::ManifestReferencesUnknown { digests: vec![] }, 400, "MANIFEST_BLOB_UNKNOWN"),
        (Error::ConditionFailed { current: None }, 412, "DENIED"),
        (Error::Referenced { by: digest() }, 409, "DENIED"),
        (Error::TooManyUploads { max: 1 }, 429, "TOOMANYREQUESTS"),
        (Error::ChunkTooSmall { min: 1 }, 400, "SIZE_INVALID"),
        (Error::ManifestTooLarge { max: 1 }, 413, "MANIFEST_INVALID"),
        (Error::BodyBroken, 400, "BLOB_UPLOAD_INVALID"),
        (Error::NoQuorum { outcome: Outcome::None }, 503, "UNAVAILABLE"),
        (Error::NotOpen, 503, "UNAVAILABLE"),
        (Error::Busy, 503, "UNAVAILABLE"),
        (Error::Unavailable, 503, "UNAVAILABLE"),
        (Error::Lost, 503, "UNAVAILABLE"),
        (Error::TooFewCopies { made: 1, needed: 2, reason: "x".into() }, 503, "UNAVAILABLE"),
        (Error::NoSpace, 503, "UNAVAILABLE"),
        (Error::Internal { source: "secret".into() }, 500, "UNKNOWN"),
    ];
    for (error, status, code) in table {
        let name = format!("{error:?}");
        let (answered, headers, body) = told(error.into()).await;
        assert_eq!(answered.as_u16(), status, "{name}");
        assert_eq!(body["errors"][0]["code"], code, "{name}");
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(headers.contains_key(header::RETRY_AFTER), status == 503 || status == 429, "{name}");
        assert_eq!(headers.contains_key(headers::OUTCOME), status == 503, "{name}");
        if status >= 500 {
            assert_eq!(body["errors"][0]["detail"]["request"], "0123456789abcdef", "{name}");
            assert!(!body.to_string().contains("secret"));
        }
    }
}

#[tokio::test]
async fn answers_carry_what_the_client_acts_on() {
    let (_, headers, _) = told(Error::RangeInvalid { length: 100 }.into()).await;
    assert_eq!(headers[header::RANGE], "0-99");
    let (_, headers, _) = told(Error::NoQuorum { outcome: Outcome::Unknown }.into()).await;
    assert_eq!(headers[headers::OUTCOME], "unknown");
    let (_, _, body) = told(Error::ManifestReferencesUnknown { digests: vec![digest(), digest()] }.into()).await;
    assert_eq!(body["errors"].as_array().unwrap().len(), 2);
    assert_eq!(body["errors"][1]["detail"]["digest"], digest().to_string());
    let (_, headers, body) = told(Error::ConditionFailed { current: Some(digest()) }.into()).await;
    assert_eq!(headers[header::ETAG], format!("\"{}\"", digest()));
    assert_eq!(body["errors"][0]["detail"]["current"], digest().to_string());
    let (_, headers, _) = told(Failure::unauthenticated()).await;
    assert_eq!(headers[header::WWW_AUTHENTICATE], "Basic realm=\"rafthold\"");
    let (status, headers, _) = told(Failure::method("GET, HEAD")).await;
    assert_eq!((status.as_u16(), &headers[header::ALLOW]), (405, &HeaderValue::from_static("GET, HEAD")));
}

#[test]
fn a_bad_tag_is_invalid_to_write_and_unknown_to_read() {
    assert_eq!(Failure::route(RouteError::Tag, true).status, StatusCode::BAD_REQUEST);
    assert_eq!(Failure::route(RouteError::Tag, false).status, StatusCode::NOT_FOUND);
}
