use std::fs;
use std::path::Path;

use super::{Batch, Db, Table, VALUE_BYTES_MAX};

fn put(db: &Db, table: Table, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(table, key, value);
    db.commit(&batch);
}

fn set_aside(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("index.bad-")).count()
}

fn keeps_order_and_tables_apart(db: &Db) {
    for (table, key) in [(Table::Blobs, b"b"), (Table::Extents, b"a"), (Table::Blobs, b"a"), (Table::Blobs, b"c")] {
        put(db, table, key, b"value");
    }
    let keys = |entries: Vec<(Vec<u8>, Vec<u8>)>| entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(db.scan(Table::Blobs, None, 10)), [b"a", b"b", b"c"]);
    assert_eq!(keys(db.scan(Table::Blobs, Some(b"a"), 1)), [b"b"]);
    assert_eq!(keys(db.scan(Table::Extents, None, 10)), [b"a"]);
    let mut batch = Batch::default();
    batch.remove(Table::Blobs, b"a");
    batch.put(Table::Blobs, b"b", b"other");
    db.commit(&batch);
    assert_eq!(db.get(Table::Blobs, b"a"), None);
    assert_eq!(db.get(Table::Blobs, b"b").unwrap(), b"other");
    db.wipe();
    assert!(db.scan(Table::Blobs, None, 10).is_empty());
}

#[test]
fn both_engines_keep_order_and_tables_apart() {
    let dir = tempfile::tempdir().unwrap();
    keeps_order_and_tables_apart(&Db::open(dir.path()));
    keeps_order_and_tables_apart(&Db::in_memory());
}

#[test]
fn entries_survive_an_orderly_stop_and_only_that_is_called_clean() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path());
    assert!(!db.is_clean());
    put(&db, Table::Cursors, b"scrub", b"7");
    db.close().unwrap();
    drop(db);

    let db = Db::open(dir.path());
    assert!(db.is_clean());
    assert_eq!(db.get(Table::Cursors, b"scrub").unwrap(), b"7");
    db.flush();
    drop(db);

    let db = Db::open(dir.path());
    assert!(!db.is_clean(), "the last stop was not orderly");
    assert_eq!(db.get(Table::Cursors, b"scrub").unwrap(), b"7");
    assert_eq!(set_aside(dir.path()), 0);
}

#[test]
fn a_damaged_index_is_set_aside_and_only_the_newest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    for damage in ["conf", "db", "conf"] {
        let db = Db::open(dir.path());
        for key in 0..2000u32 {
            put(&db, Table::Blobs, &key.to_be_bytes(), &[7; 64]);
        }
        db.close().unwrap();
        drop(db);
        fs::write(dir.path().join("index").join(damage), vec![0xa5; 10_000]).unwrap();
    }
    let db = Db::open(dir.path());
    put(&db, Table::Blobs, b"k", b"v");
    assert_eq!(db.get(Table::Blobs, b"k").unwrap(), b"v");
    assert_eq!(set_aside(dir.path()), 1);
}

#[test]
fn an_index_of_an_unknown_format_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path());
    put(&db, Table::Blobs, b"k", b"v");
    db.close().unwrap();
    drop(db);
    fs::write(dir.path().join("index/format"), b"2\n").unwrap();
    let db = Db::open(dir.path());
    assert!(!db.is_clean());
    assert_eq!(db.get(Table::Blobs, b"k"), None);
    assert_eq!(set_aside(dir.path()), 1);
}

#[test]
fn an_index_that_cannot_be_on_disk_is_kept_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let _fault = crate::disk::faults::inject(dir.path(), crate::disk::faults::Step::Write, 28);
    let db = Db::open(dir.path());
    put(&db, Table::Blobs, b"k", b"v");
    assert_eq!(db.get(Table::Blobs, b"k").unwrap(), b"v");
    db.close().unwrap();
}

#[test]
#[should_panic(expected = "index values are small")]
fn a_large_value_is_refused() {
    Batch::default().put(Table::Blobs, b"k", &vec![0; VALUE_BYTES_MAX + 1]);
}
