//! Round trips and tables of the texts that clients send: names, tags, digests, media types, ids.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use proptest::prelude::*;

use super::{Algorithm, Digest, MediaType, RepositoryName, Tag, UploadId};

#[track_caller]
fn accepted<T: FromStr<Err: Debug> + Display>(texts: &[&str]) {
    for text in texts {
        assert_eq!(text.parse::<T>().unwrap_or_else(|error| panic!("{text:?}: {error:?}")).to_string(), *text);
    }
}

#[track_caller]
fn refused<T: FromStr>(texts: &[&str]) {
    for text in texts {
        assert!(text.parse::<T>().is_err(), "{text:?}");
    }
}

#[test]
fn repository_names_follow_the_grammar() {
    accepted::<RepositoryName>(&[
        "a",
        "a/b",
        "library/alpine",
        "a.b",
        "a_b",
        "a__b",
        "a-b",
        "a---b",
        "0/1/2",
        "blobs",
        "a/blobs/uploads",
        "sha256",
        &"a".repeat(255),
        &["a"; 128].join("/"),
    ]);
    refused::<RepositoryName>(&[
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A/b",
        "a..b",
        "-a",
        "a-",
        ".a",
        "a.",
        "a___b",
        "a._b",
        "a.-b",
        "..",
        "a/../b",
        "a b",
        "a\0b",
        "a\r\nb",
        "a%2fb",
        "a:b",
        "a@b",
        "é",
        "a\u{301}",
        "a\u{202e}b",
        "\u{430}",
        &"a".repeat(256),
        &["a"; 300].join("/"),
        "_catalog",
    ]);
}

#[test]
fn tags_follow_the_grammar() {
    accepted::<Tag>(&[
        "latest",
        "v1.0_2-3",
        "_",
        "A",
        &"t".repeat(128),
        "sha256-44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a.sig",
    ]);
    refused::<Tag>(&["", ".a", "-a", "a/b", "a:b", "a@b", "a+b", "a b", "a\n", "é", &"t".repeat(129)]);
}

#[test]
fn digests_have_one_spelling() {
    let (short, long) = ("a".repeat(64), "0".repeat(128));
    accepted::<Digest>(&[&format!("sha256:{short}"), &format!("sha512:{long}")]);
    refused::<Digest>(&[
        "",
        ":",
        "sha256",
        "sha256:",
        "sha256:baddigeststring",
        "sha256:../../x",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        &format!("sha256:{}", "a".repeat(63)),
        &format!("sha256:{}", "a".repeat(65)),
        &format!("sha256:{}", "A".repeat(64)),
        &format!("SHA256:{short}"),
        &format!("sha1:{short}"),
        &format!("sha512:{short}"),
        &format!("sha256+b64:{short}"),
        &format!(" sha256:{short}"),
        &format!("{}:{short}", "x".repeat(10_000)),
        &format!("sha256:{}é", "a".repeat(62)),
    ]);
}

#[test]
fn media_types_follow_the_grammar() {
    accepted::<MediaType>(&[MediaType::OCI_INDEX, "text/plain", "application/vnd.a-b+json", "a/b"]);
    refused::<MediaType>(&[
        "",
        "a",
        "a/",
        "/b",
        "a/b/c",
        "a b/c",
        "a/b;c=d",
        "a/b\r\nX: y",
        "é/a",
        &format!("a/{}", "b".repeat(128)),
    ]);
}

proptest! {
    #[test]
    fn names_round_trip(text in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){0,4}") {
        prop_assert_eq!(text.parse::<RepositoryName>().unwrap().to_string(), text);
    }

    #[test]
    fn tags_round_trip(text in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}") {
        prop_assert_eq!(text.parse::<Tag>().unwrap().to_string(), text);
    }

    #[test]
    fn digests_round_trip_as_text_json_and_bytes(content in proptest::collection::vec(any::<u8>(), 0..100), long: bool) {
        let digest = Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &content);
        prop_assert_eq!(&digest.to_string().parse::<Digest>().unwrap(), &digest);
        prop_assert_eq!(&serde_json::from_str::<Digest>(&serde_json::to_string(&digest).unwrap()).unwrap(), &digest);
        prop_assert_eq!(&postcard::from_bytes::<Digest>(&postcard::to_allocvec(&digest).unwrap()).unwrap(), &digest);
    }

    #[test]
    fn upload_ids_round_trip(bits: u128) {
        let id = UploadId::from_random(bits);
        prop_assert_eq!(id.to_string().parse::<UploadId>().unwrap(), id);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,40}") {
        let _ = text.parse::<RepositoryName>().is_ok() | text.parse::<Tag>().is_ok() | text.parse::<Digest>().is_ok();
        let _ = text.parse::<MediaType>().is_ok() | text.parse::<UploadId>().is_ok();
    }
}
