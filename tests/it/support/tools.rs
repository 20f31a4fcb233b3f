//! Programs in other languages that the tests use: installed into the target directory, anew when their versions change.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use super::target;

/// The directory with the versions of the tools.
pub fn contract() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contract")
}

/// A tool of `requirements.txt`.
pub fn python(program: &str) -> Command {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    let directory = INSTALLED.get_or_init(|| {
        installed("python", &[contract().join("requirements.txt")], |directory| {
            let python = if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
            run(Command::new(python).args(["-m", "venv", "--clear"]).arg(directory), PYTHON);
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
            let python = directory.join("bin/python");
            run(Command::new(python).args(pip).arg(contract().join("requirements.txt")), "is the network there?");
        })
    });
    Command::new(directory.join("bin").join(program))
}

/// A directory with the packages of `package-lock.json`, and the sources that go with them.
pub fn node() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        installed("node", &npm_files(), |directory| {
            for file in npm_files() {
                fs::copy(&file, directory.join(file.file_name().unwrap())).unwrap();
            }
            let ci = ["ci", "--no-audit", "--no-fund", "--ignore-scripts"];
            run(Command::new("npm").args(ci).current_dir(directory), NODE);
        })
    })
}

fn npm_files() -> [PathBuf; 2] {
    ["package.json", "package-lock.json"].map(|file| contract().join(file))
}

/// A program of `tests/foreign`, compiled, with the packages that it uses.
pub fn foreign(program: &str) -> PathBuf {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    let directory = COMPILED.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files =
            ["foreign/attacker.ts", "foreign/honest.ts", "foreign/tsconfig.json", "../examples/ts-mls/device.ts"];
        let sources = files.map(|file| here.join(file));
        let versions: Vec<_> = sources.iter().cloned().chain(npm_files()).collect();
        installed("foreign", &versions, |directory| {
            let packages = ["node_modules", "package.json"].map(|name| node().join(name));
            for file in sources.iter().chain(&packages) {
                symlink(file, directory.join(file.file_name().unwrap())).unwrap();
            }
            let mut compile = Command::new(directory.join("node_modules/.bin/tsc"));
            run(compile.args(["--preserveSymlinks", "-p", "."]).current_dir(directory), "the program has to be mended");
        })
    });
    directory.join("built").join(program)
}

/// The program of `tests/browser`, which drives Chromium, with the packages that it uses.
pub fn browser() -> Command {
    static LINKED: OnceLock<PathBuf> = OnceLock::new();
    let directory = LINKED.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/browser.mjs");
        let versions: Vec<_> = [source.clone()].into_iter().chain(npm_files()).collect();
        installed("browser", &versions, |directory| {
            symlink(node().join("node_modules"), directory.join("node_modules")).unwrap();
            // A copy, since Node.js looks for packages beside the file that a link leads to.
            fs::copy(source, directory.join("browser.mjs")).unwrap();
        })
    });
    let mut browser = Command::new("node");
    browser.arg(directory.join("browser.mjs"));
    browser
}

const PYTHON: &str = "install Python 3.11 or newer with `sudo apt-get install python3-venv`";
const NODE: &str = "install Node.js 20 or newer and npm with `sudo apt-get install nodejs npm`";

/// Installs into a directory of its own, unless the files that it was installed by are still the same. Test processes that
/// want the same wait for one another.
fn installed(name: &str, versions: &[PathBuf], install: impl FnOnce(&Path)) -> PathBuf {
    let home = target().join("contract");
    fs::create_dir_all(&home).unwrap();
    let lock = File::create(home.join(name).with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let directory = home.join(name);
    let wanted: String = versions.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let stamp = directory.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return directory;
    }
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    install(&directory);
    fs::write(stamp, wanted).unwrap();
    directory
}

/// Runs a program that has to succeed, and returns its output.
pub fn run(command: &mut Command, remedy: &str) -> String {
    let output = command.stdin(Stdio::null()).output();
    let program = command.get_program().to_owned();
    let output = output.unwrap_or_else(|error| panic!("{} does not run: {error}: {remedy}", shown(&program)));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {}: {remedy}\n{text}", output.status);
    text
}

fn shown(program: &OsStr) -> String {
    program.to_string_lossy().into_owned()
}
