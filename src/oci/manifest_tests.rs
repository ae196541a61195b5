//! Tables of good and bad manifests.

use super::*;

const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const CONFIG: &str = r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}"#;

fn entry(media_type: &str, more: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":2{more}}}"#)
}

fn layer(more: &str) -> String {
    entry("application/vnd.oci.image.layer.v1.tar+gzip", more)
}

/// An image manifest with these members after `schemaVersion`.
fn image(members: &str) -> String {
    format!(r#"{{"schemaVersion":2,{members}}}"#)
}

fn parse(body: &str, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
    Manifest::parse(body.as_bytes(), content_type)
}

#[track_caller]
fn accepted(members: &str) -> Manifest {
    parse(&image(members), Some(MediaType::OCI_MANIFEST)).unwrap()
}

#[track_caller]
fn refused(members: &str) {
    let outcome = parse(&image(members), Some(MediaType::OCI_MANIFEST));
    assert!(matches!(outcome, Err(Invalid(_))), "{members}: {outcome:?}");
}

#[track_caller]
fn refused_index(members: &str) {
    let outcome = parse(&image(members), Some(MediaType::OCI_INDEX));
    assert!(matches!(outcome, Err(Invalid(_))), "{members}: {outcome:?}");
}

#[test]
fn an_image_manifest_yields_its_references() {
    let manifest = accepted(&format!(
        r#"{CONFIG},"layers":[{},{}],"subject":{},"annotations":{{"a":"b"}},"com.example.extra":{{"Layers":[1]}}"#,
        layer(""),
        layer(r#","urls":["http://169.254.169.254/","gopher://x"],"annotations":{"x":"<script>"}"#),
        entry(MediaType::OCI_MANIFEST, ""),
    ));
    assert_eq!(manifest.config.unwrap().digest.to_string(), DIGEST);
    assert_eq!(manifest.layers.len(), 2);
    assert!(manifest.subject.is_some());
    assert_eq!(manifest.artifact_type.as_deref(), Some("application/vnd.oci.image.config.v1+json"));
    assert_eq!(manifest.annotations["a"], "b");
}

#[test]
fn images_without_layers_are_images() {
    for layers in [r#","layers":[]"#, r#","layers":null"#, ""] {
        assert!(accepted(&format!("{CONFIG}{layers}")).layers.is_empty());
    }
}

#[test]
fn an_index_may_be_empty_nested_or_list_blobs() {
    let members = format!(
        r#""manifests":[{},{},{}],"artifactType":"application/vnd.example.thing""#,
        entry(MediaType::OCI_MANIFEST, r#","platform":{"os":"linux","architecture":"amd64"}"#),
        entry(MediaType::OCI_INDEX, ""),
        entry("application/vnd.oci.image.layer.v1.tar+zstd", ""),
    );
    let index = parse(&image(&members), Some(MediaType::OCI_INDEX)).unwrap();
    let kinds: Vec<bool> = index.manifests.iter().map(Descriptor::is_manifest).collect();
    assert_eq!(kinds, [true, true, false]);
    assert_eq!(index.artifact_type.as_deref(), Some("application/vnd.example.thing"));
    for empty in [r#""manifests":[]"#, r#""manifests":null"#] {
        let index = parse(&image(empty), Some(MediaType::OCI_INDEX)).unwrap();
        assert!(index.manifests.is_empty() && index.artifact_type.is_none());
    }
}

#[test]
fn docker_manifests_and_lists_are_read_like_their_oci_twins() {
    let manifest = image(&format!(r#""mediaType":"{}",{CONFIG},"layers":[]"#, MediaType::DOCKER_MANIFEST));
    assert_eq!(
        parse(&manifest, Some(MediaType::DOCKER_MANIFEST)).unwrap().media_type.as_str(),
        MediaType::DOCKER_MANIFEST
    );
    let list = image(&format!(
        r#""mediaType":"{}","manifests":[{}]"#,
        MediaType::DOCKER_LIST,
        entry(MediaType::DOCKER_MANIFEST, "")
    ));
    assert!(parse(&list, Some(MediaType::DOCKER_LIST)).unwrap().manifests[0].is_manifest());
    assert!(parse(&image(&format!(r#"{CONFIG},"layers":[]"#)), Some(MediaType::DOCKER_MANIFEST)).is_err());
}

#[test]
fn foreign_and_non_distributable_layers_are_not_demanded() {
    for (media_type, expected) in [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", false),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", false),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", false),
        ("application/vnd.oci.image.layer.v1.tar", true),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
    ] {
        let manifest = accepted(&format!(r#"{CONFIG},"layers":[{}]"#, entry(media_type, "")));
        assert_eq!(manifest.layers[0].is_distributable(), expected, "{media_type}");
    }
}

#[test]
fn the_body_and_the_content_type_must_agree_on_what_it_is() {
    #[track_caller]
    fn check(stated: Option<&str>, content_type: Option<&str>, accepted: bool) {
        let stated_member = stated.map(|text| format!(r#""mediaType":"{text}","#)).unwrap_or_default();
        let outcome = parse(&image(&format!("{stated_member}{CONFIG}")), content_type);
        assert_eq!(outcome.is_ok(), accepted, "{stated:?} {content_type:?}: {outcome:?}");
    }
    let oci = MediaType::OCI_MANIFEST;
    check(Some(oci), Some(oci), true);
    check(Some(oci), None, true);
    check(Some(oci), Some("application/octet-stream"), true);
    check(Some(oci), Some(&format!("{oci}; charset=utf-8")), true);
    check(Some(oci), Some(&oci.to_uppercase()), true);
    check(None, Some(oci), true);
    check(None, Some(&format!("{oci};x=y")), true);
    check(Some(oci), Some(MediaType::DOCKER_MANIFEST), false);
    check(Some(oci), Some(MediaType::OCI_INDEX), false);
    check(Some(oci), Some("text/html"), false);
    check(Some(oci), Some(&"a".repeat(8192)), false);
    check(Some("text/html"), Some("text/html"), false);
    check(None, None, false);
    check(None, Some("application/octet-stream"), false);
    check(None, Some("application/json"), false);
    check(Some(MediaType::OCI_INDEX), None, false);
}

#[test]
fn schema_1_is_unsupported_however_it_comes() {
    for (body, content_type) in [
        (r#"{"schemaVersion":1,"fsLayers":[]}"#, None),
        (r#"{"schemaVersion":1}"#, Some(DOCKER_SCHEMA1)),
        (r#"{"schemaVersion":1,"signatures":[]}"#, Some(DOCKER_SCHEMA1_SIGNED)),
        ("not JSON", Some(DOCKER_SCHEMA1_SIGNED)),
        (r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v1+json"}"#, None),
    ] {
        assert_eq!(parse(body, content_type), Err(Unsupported), "{body}");
    }
}

#[test]
fn bodies_that_can_be_read_in_two_ways_are_refused() {
    refused(&format!(r#"{CONFIG},{CONFIG}"#));
    refused(&format!(r#"{CONFIG},"layers":[],"layers":[]"#));
    refused(&format!(r#"{CONFIG},"Layers":[]"#));
    refused(&format!(r#"{CONFIG},"layer\u017f":[]"#));
    refused(&format!(r#"{CONFIG},"MEDIATYPE":"x""#));
    refused(&format!(r#"{CONFIG},"manifests":[]"#));
    refused(&format!(r#"{CONFIG},"fsLayers":[]"#));
    refused(&format!(r#"{CONFIG},"layers":[{}]"#, layer(r#","Digest":"x""#)));
    refused(&format!(r#"{CONFIG},"layers":[{}]"#, layer(r#","size":2"#)));
    refused_index(&format!(r#""manifests":[],{CONFIG}"#));
    refused_index(r#""manifests":[],"layers":[]"#);
    refused_index(r#""Manifests":[]"#);
}

#[test]
fn bodies_that_break_the_specification_are_refused() {
    refused(r#""layers":[]"#);
    refused(r#""config":null"#);
    refused(r#""config":[]"#);
    refused(&format!(r#"{CONFIG},"layers":{{}}"#));
    refused(&format!(r#"{CONFIG},"layers":[1]"#));
    refused(&format!(r#"{CONFIG},"mediaType":5"#));
    refused(&format!(r#"{CONFIG},"artifactType":"{}""#, "a".repeat(1 << 20)));
    refused(&format!(r#"{CONFIG},"artifactType":"no type""#));
    refused(&format!(r#"{CONFIG},"annotations":[]"#));
    refused(&format!(r#"{CONFIG},"annotations":{{"a":1}}"#));
    refused(&format!(r#"{CONFIG},"subject":"{DIGEST}""#));
    refused_index(r#""annotations":{}"#);
    for body in ["[]", "null", "2", "\"x\"", "{}", r#"{"schemaVersion":"2"}"#, r#"{"schemaVersion":3}"#, ""] {
        assert!(matches!(parse(body, Some(MediaType::OCI_MANIFEST)), Err(Invalid(_))), "{body}");
    }
}

#[test]
fn descriptors_are_checked_member_by_member() {
    let with = |digest: &str, size: &str, more: &str| {
        format!(r#"{CONFIG},"layers":[{{"mediaType":"a/b","digest":"{digest}","size":{size}{more}}}]"#)
    };
    accepted(&with(DIGEST, "9007199254740992", ""));
    for size in
        ["-1", "9007199254740993", "18446744073709551615", "18446744073709551616", "1.5", "\"2\"", "null", "1e2"]
    {
        refused(&with(DIGEST, size, ""));
    }
    for digest in ["", "sha256:", "sha256:../../x", "md5:d41d8cd98f00b204e9800998ecf8427e", &DIGEST.to_uppercase()] {
        refused(&with(digest, "2", ""));
    }
    for more in [
        r#","urls":"http://x""#,
        r#","urls":[1]"#,
        r#","annotations":{"a":null}"#,
        r#","artifactType":7"#,
        r#","data":"????""#,
        r#","data":"e30""#,
        r#","data":"e31=""#,
        r#","data":"AAAA""#,
        r#","data":7"#,
    ] {
        refused(&with(DIGEST, "2", more));
    }
    accepted(&with(DIGEST, "2", r#","data":"e30=","urls":null,"annotations":null"#));
    refused(&with(DIGEST, "3", r#","data":"e30=""#));
    refused(&format!(r#"{CONFIG},"layers":[{{"mediaType":"none","digest":"{DIGEST}","size":2}}]"#));
    refused(&format!(r#"{CONFIG},"layers":[{{"digest":"{DIGEST}","size":2}}]"#));
}

#[test]
fn large_manifests_are_read_and_hostile_ones_refused_quickly() {
    let annotations: Vec<String> = (0..390).map(|key| format!(r#""large-{key}":"{}""#, "A".repeat(10_000))).collect();
    let large = format!(r#"{CONFIG},"layers":[{}],"annotations":{{{}}}"#, layer(""), annotations.join(","));
    assert_eq!(accepted(&large).annotations.len(), 390);
    refused(&format!(r#"{large},"subject":{}"#, entry(MediaType::OCI_MANIFEST, "")));
    let layers = vec![layer(""); 10_001].join(",");
    refused(&format!(r#"{CONFIG},"layers":[{layers}]"#));
    refused(&format!(r#"{CONFIG},"x":{}1{}"#, "[".repeat(10_000), "]".repeat(10_000)));
}
