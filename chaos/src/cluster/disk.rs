//! A node's disk: an ext4 image on a loop mount, so that a power cut is real.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A mounted ext4 image. Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct LoopDisk {
    image: PathBuf,
    mount: PathBuf,
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl LoopDisk {
    /// Makes an image of `size_bytes` and mounts it. Needs root.
    pub(crate) fn create(image: PathBuf, mount: PathBuf, size_bytes: u64) -> Result<Self> {
        fs::create_dir_all(&mount)?;
        File::create(&image)?.set_len(size_bytes)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let disk = Self { image, mount };
        disk.attach()?;
        Ok(disk)
    }

    fn attach(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount))
    }

    fn detach(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.mount))
    }

    /// Cuts the power: from now on nothing reaches the image, what was not synced is gone.
    ///
    /// The journal is not flushed. The process that uses the disk must be stopped before and killed after.
    pub(crate) fn cut_power(&self) -> Result<()> {
        const SHUTDOWN_WITHOUT_LOG_FLUSH: u32 = 2;
        shutdown(&File::open(&self.mount)?, SHUTDOWN_WITHOUT_LOG_FLUSH)
    }

    /// Brings the power back: the journal is replayed, as after a reboot.
    pub(crate) fn restore_power(&self) -> Result<()> {
        self.detach()?;
        self.attach()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }
}

/// Takes up all of a disk until dropped.
#[derive(Debug)]
pub(crate) struct Filler(PathBuf);

impl Filler {
    /// Takes every free byte of the disk that `dir` lies on.
    pub(crate) fn bytes(dir: &Path) -> Result<Self> {
        let filler = Self(dir.join("filler"));
        fs::create_dir(&filler.0)?;
        let mut file = File::create(filler.0.join("bytes"))?;
        for step in [1 << 20, 4096] {
            let zeros = vec![0; step];
            while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
        }
        Ok(filler)
    }

    /// Takes every free inode of the disk that `dir` lies on.
    pub(crate) fn inodes(dir: &Path) -> Result<Self> {
        let filler = Self(dir.join("filler"));
        fs::create_dir(&filler.0)?;
        let mut made = 0u64;
        while File::create(filler.0.join(made.to_string())).is_ok() {
            made += 1;
        }
        ensure!(made > 0, "VOID: there was no inode to take");
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error:#}", self.0.display());
        }
    }
}

#[expect(unsafe_code, reason = "the ext4 shutdown ioctl has no safe wrapper")]
fn shutdown(root: &File, flags: u32) -> Result<()> {
    const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    // SAFETY: the ioctl reads one u32 through the pointer, which `Setter` provides and keeps alive over the call.
    unsafe {
        let setter = rustix::ioctl::Setter::<EXT4_IOC_SHUTDOWN, u32>::new(flags);
        rustix::ioctl::ioctl(root, setter).context("ext4 shutdown ioctl")
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            eprintln!("unmount {}: {error:#}", self.mount.display());
        }
    }
}
