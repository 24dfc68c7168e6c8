//! The configuration file is watched: each way in which editors, deployments and people change a file
//! leads to one reload, and nothing else does.

use crate::support::gateway::write_whole;
use crate::support::{Gateway, wait_until};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Watched, soon, and with the lines that say that there was nothing to do.
const WATCHED: &str = "reload: {watch: true, debounce: 50ms}\nlog: {level: debug}";
/// Time enough for a test to do several things before a change is taken over.
const SLOWLY: &str = "reload: {watch: true, debounce: 2s}\nlog: {level: debug}";

fn service(name: &str) -> String {
    format!("{name}:\n  - http://127.0.0.1:9\n")
}

/// A gateway that misses no change any more.
fn watched(settings: &str, services: &str) -> Gateway {
    let gateway = Gateway::with(settings, services);
    wait_idle(&gateway, 1);
    gateway
}

fn write_in_place(gateway: &Gateway, text: &str) {
    fs::write(gateway.directory().join("config.yaml"), text).unwrap();
}

/// Waits until the configuration of this generation, the services `names`, is in force; each reload before it
/// was logged, and none was for nothing.
#[track_caller]
fn wait_in_force(gateway: &mut Gateway, generation: usize, names: &[&str]) {
    let line = format!("generation {generation} is in force");
    gateway.wait_for_log(&line, |found| found.contains(&line));
    assert_eq!(services(gateway), names);
    assert_eq!(in_force(gateway), generation - 1);
    assert_eq!(unchanged(gateway), 0);
}

fn services(gateway: &Gateway) -> Vec<String> {
    let status = gateway.status();
    let services = status["services"].as_array().unwrap();
    services.iter().map(|service| service["name"].as_str().unwrap().to_owned()).collect()
}

fn count(gateway: &Gateway, part: &str) -> usize {
    gateway.log_lines(|line| line.contains(part)).len()
}

fn in_force(gateway: &Gateway) -> usize {
    count(gateway, "is in force")
}

fn unchanged(gateway: &Gateway) -> usize {
    count(gateway, "the configuration is unchanged")
}

/// How often the watcher, woken or not, has found nothing to do.
fn idle(gateway: &Gateway) -> usize {
    count(gateway, "nothing to do until it changes")
}

#[track_caller]
fn wait_idle(gateway: &Gateway, times: usize) {
    wait_until("the watcher finds nothing to do", || idle(gateway) >= times);
}

fn watchers(gateway: &Gateway) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    // a thread may end while it is looked at
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "watcher").count()
}

fn has_inotify(gateway: &Gateway) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap();
    let mut targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.unwrap().path()).ok());
    targets.any(|target| target.to_string_lossy().contains("inotify"))
}

#[test]
fn a_file_renamed_over_is_loaded() {
    let mut gateway = watched(WATCHED, &service("a"));
    assert!(has_inotify(&gateway));
    gateway.rewrite_services(&service("b"));
    wait_in_force(&mut gateway, 2, &["b"]);
    // the new file is watched like the first, for both kinds of writing
    gateway.rewrite_services(&service("c"));
    wait_in_force(&mut gateway, 3, &["c"]);
    write_in_place(&gateway, &format!("{}{}", gateway.section(), service("d")));
    wait_in_force(&mut gateway, 4, &["d"]);
}

#[test]
fn a_file_written_in_place_is_loaded_when_it_is_whole() {
    let mut gateway = watched(SLOWLY, &service("a"));
    let section = gateway.section().to_owned();
    let whole = format!("{section}{}{}", service("b"), service("c"));
    // nothing, and half a file that would be valid; each is seen, and has gone before its time
    for (at, part) in ["", &format!("{section}{}", service("b"))].into_iter().enumerate() {
        write_in_place(&gateway, part);
        wait_until("it is seen", || count(&gateway, "if it stays so") == at + 1);
    }
    write_in_place(&gateway, &whole);
    wait_in_force(&mut gateway, 2, &["b", "c"]);
    assert_eq!(count(&gateway, "ERROR"), 0);
    assert_eq!(count(&gateway, "is empty"), 0);
}

#[test]
fn an_empty_file_is_not_loaded_by_itself() {
    let mut gateway = watched(WATCHED, &service("a"));
    write_in_place(&gateway, "");
    gateway.wait_for_log("what is awaited", |line| line.contains("config.yaml is empty"));
    wait_idle(&gateway, 2);
    // white space is no content either
    write_in_place(&gateway, "\u{feff}\n  \r\n");
    wait_idle(&gateway, 3);
    gateway.rewrite_services(&service("b"));
    wait_in_force(&mut gateway, 2, &["b"]);
    assert_eq!(count(&gateway, "is empty"), 1);
    assert_eq!(count(&gateway, "no services"), 0);
}

/// A version of a mounted ConfigMap, and the link that makes it the present one.
fn publish(directory: &Path, version: &str, text: &str) {
    fs::create_dir(directory.join(version)).unwrap();
    fs::write(directory.join(version).join("config.yaml"), text).unwrap();
    symlink(version, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
}

#[test]
fn a_mounted_config_map_is_loaded_when_its_link_moves() {
    let mut gateway = Gateway::placed(WATCHED, &service("a"), |directory, text| {
        publish(directory, "..2024_01", text);
        symlink("..data/config.yaml", directory.join("config.yaml")).unwrap();
        "config.yaml"
    });
    wait_idle(&gateway, 1);
    for (generation, version, name) in [(2, "..2024_02", "b"), (3, "..2024_03", "c")] {
        let old = fs::read_link(gateway.directory().join("..data")).unwrap();
        publish(gateway.directory(), version, &format!("{}{}", gateway.section(), service(name)));
        wait_in_force(&mut gateway, generation, &[name]);
        fs::remove_dir_all(gateway.directory().join(old)).unwrap();
    }
}

#[test]
fn a_deleted_file_stops_nothing_and_is_awaited() {
    let mut gateway = watched(WATCHED, &service("a"));
    let path = gateway.directory().join("config.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let line = gateway.wait_for_log("the loss", |line| line.contains("the running configuration stays"));
    assert!(line.contains("config.yaml") && line.contains("No such file"), "{line}");
    assert_eq!(services(&gateway), ["a"]);
    wait_idle(&gateway, 2);

    write_in_place(&gateway, &text);
    gateway.wait_for_log("the return", |line| line.contains("is there again"));
    assert_eq!((in_force(&gateway), unchanged(&gateway)), (0, 0));

    fs::remove_file(&path).unwrap();
    wait_until("the second loss is logged", || count(&gateway, "the running configuration stays") == 2);
    write_in_place(&gateway, &format!("{}{}", gateway.section(), service("b")));
    wait_in_force(&mut gateway, 2, &["b"]);
}

#[test]
fn a_replaced_directory_is_followed() {
    let mut gateway = Gateway::placed(WATCHED, &service("a"), |directory, text| {
        fs::create_dir_all(directory.join("etc/conf")).unwrap();
        fs::write(directory.join("etc/conf/config.yaml"), text).unwrap();
        "etc/conf/config.yaml"
    });
    wait_idle(&gateway, 1);
    let etc = gateway.directory().join("etc");
    let section = gateway.section().to_owned();
    let text = |name: &str| format!("{section}{}", service(name));

    fs::create_dir(etc.join("new")).unwrap();
    fs::write(etc.join("new/config.yaml"), text("b")).unwrap();
    fs::rename(etc.join("conf"), etc.join("old")).unwrap();
    fs::rename(etc.join("new"), etc.join("conf")).unwrap();
    wait_in_force(&mut gateway, 2, &["b"]);
    // the old directory is nothing to the gateway any more
    write_whole(&etc.join("old/config.yaml"), &text("old"));
    write_whole(&etc.join("conf/config.yaml"), &text("c"));
    wait_in_force(&mut gateway, 3, &["c"]);

    // and so is one above it
    let before = idle(&gateway);
    fs::remove_dir_all(&etc).unwrap();
    gateway.wait_for_log("the loss", |line| line.contains("the running configuration stays"));
    wait_idle(&gateway, before + 1);
    fs::create_dir_all(etc.join("conf")).unwrap();
    fs::write(etc.join("conf/config.yaml"), text("d")).unwrap();
    wait_in_force(&mut gateway, 4, &["d"]);
}

#[test]
fn a_touched_file_is_not_loaded() {
    let mut gateway = watched(WATCHED, &service("a"));
    let path = gateway.directory().join("config.yaml");
    let file = fs::File::options().append(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    drop(file);
    wait_idle(&gateway, 2);
    let before = idle(&gateway);
    gateway.rewrite_services(&service("a"));
    wait_idle(&gateway, before + 1);
    assert_eq!((in_force(&gateway), unchanged(&gateway)), (0, 0));
    gateway.rewrite_services(&service("b"));
    wait_in_force(&mut gateway, 2, &["b"]);
}

#[test]
fn polling_needs_no_inotify() {
    let mut gateway = watched("reload: {poll: 50ms, debounce: 20ms}\nlog: {level: debug}", &service("a"));
    assert!(!has_inotify(&gateway));
    gateway.rewrite_services(&service("b"));
    wait_in_force(&mut gateway, 2, &["b"]);
    write_in_place(&gateway, &format!("{}{}", gateway.section(), service("c")));
    wait_in_force(&mut gateway, 3, &["c"]);
    assert!(!has_inotify(&gateway));
}

#[test]
fn without_inotify_the_file_is_polled_all_the_same() {
    for limit in ["max_inotify_instances", "max_inotify_watches"] {
        let Some(mut gateway) = Gateway::limited(limit, WATCHED, &service("a")) else {
            eprintln!("not tested: this system does not let a test set {limit}");
            return;
        };
        let line = gateway.wait_for_log("a warning", |line| line.contains("does not tell of changes"));
        assert!(line.contains("WARN") && line.contains("fs.inotify.max_user_"), "{line}");
        for (generation, name) in [(2, "b"), (3, "c")] {
            gateway.rewrite_services(&service(name));
            wait_in_force(&mut gateway, generation, &[name]);
        }
        assert_eq!(count(&gateway, "does not tell of changes"), 1);
    }
}

#[test]
fn what_was_loaded_otherwise_is_not_loaded_again() {
    let mut gateway = watched(SLOWLY, &service("a"));
    gateway.rewrite_services(&service("b"));
    assert_eq!(gateway.reload().json()["status"], "reloaded");
    wait_idle(&gateway, 2);
    wait_in_force(&mut gateway, 2, &["b"]);

    let before = idle(&gateway);
    gateway.rewrite_services(&service("c"));
    gateway.signal("HUP");
    wait_idle(&gateway, before + 1);
    wait_in_force(&mut gateway, 3, &["c"]);
    assert_eq!(count(&gateway, "config.yaml has changed"), 0);

    // a change behind a reload is still one
    gateway.rewrite_services(&service("d"));
    assert_eq!(gateway.reload().json()["status"], "reloaded");
    gateway.rewrite_services(&service("e"));
    wait_in_force(&mut gateway, 5, &["e"]);
    assert_eq!(count(&gateway, "config.yaml has changed"), 1);
}

#[test]
fn watching_is_switched_on_and_off_by_a_reload() {
    let mut gateway = Gateway::start(&service("a"));
    assert_eq!((watchers(&gateway), has_inotify(&gateway)), (0, false));
    let section = gateway.section().to_owned();
    let text = |settings: &str, name: &str| format!("{section}  reload: {{{settings}}}\n{}", service(name));

    gateway.rewrite_config(&text("watch: true, debounce: 50ms", "b"));
    assert_eq!(gateway.reload().status, 200);
    wait_until("there is a watcher", || watchers(&gateway) == 1 && has_inotify(&gateway));
    gateway.rewrite_config(&text("watch: true, debounce: 40ms", "c"));
    wait_in_force(&mut gateway, 3, &["c"]);
    gateway.rewrite_config(&text("poll: 40ms, debounce: 40ms", "d"));
    wait_in_force(&mut gateway, 4, &["d"]);
    wait_until("there is one watcher", || watchers(&gateway) == 1 && !has_inotify(&gateway));
    gateway.rewrite_config(&text("watch: false", "e"));
    wait_in_force(&mut gateway, 5, &["e"]);
    wait_until("there is none any more", || watchers(&gateway) == 0);
    gateway.rewrite_services(&service("f"));
    assert_eq!(services(&gateway), ["e"]);
    assert_eq!(gateway.reload().status, 200);
    wait_in_force(&mut gateway, 6, &["f"]);
}

#[test]
fn an_invalid_file_is_told_once_with_every_message() {
    // read all the time, and still told once
    let mut gateway = watched("reload: {watch: true, debounce: 20ms, poll: 10ms}\nlog: {level: debug}", &service("a"));
    let lines = gateway.section().lines().count();
    gateway.rewrite_services("b: [ftp://x]\nc:\n  - http://127.0.0.1:9\n  - nonsense\n");
    for place in [format!("config.yaml:{}:5: error", lines + 1), format!("config.yaml:{}:5: error", lines + 4)] {
        gateway.wait_for_log(&place, |line| line.contains(&place));
    }
    assert_eq!(services(&gateway), ["a"]);
    let before = idle(&gateway);
    gateway.rewrite_services("b: [ftp://x]\nc:\n  - http://127.0.0.1:9\n  - nonsense\n");
    wait_idle(&gateway, before + 1);

    // nor is one repeated that somebody else has tried
    let before = idle(&gateway);
    gateway.rewrite_services("b: [");
    assert_eq!(gateway.reload().status, 422);
    wait_idle(&gateway, before + 1);
    assert_eq!(count(&gateway, "nothing was changed"), 2);

    gateway.rewrite_services(&service("d"));
    wait_in_force(&mut gateway, 2, &["d"]);
    assert_eq!(count(&gateway, "nothing was changed"), 2);
}
