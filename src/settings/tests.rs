//! What users write in each place, and what becomes of it.

use super::*;

// A jail's closure returns a big error by its signature.
#[allow(clippy::result_large_err)]
fn within(set: impl FnOnce(&mut figment::Jail), check: impl FnOnce()) {
    figment::Jail::expect_with(|jail| {
        jail.clear_env();
        set(jail);
        check();
        Ok(())
    });
}

fn flag(name: &str, value: &str) -> (String, String) {
    (name.into(), value.into())
}

#[test]
fn defaults_are_what_is_when_nobody_says_anything() {
    within(|_| {}, || assert_eq!(Settings::load().unwrap(), Settings::default()));
}

#[test]
fn every_setting_has_its_name_and_its_text() {
    let all = serde_json::to_value(Settings::default()).unwrap();
    let mut fields: Vec<&str> = all.as_object().unwrap().keys().map(String::as_str).collect();
    let mut named: Vec<&str> = NAMES.iter().map(|(name, ..)| *name).collect();
    fields.sort_unstable();
    named.sort_unstable();
    assert_eq!(fields, named);
}

#[test]
fn flags_go_before_variables_before_the_file_and_each_is_named() {
    let set = |jail: &mut figment::Jail| {
        jail.create_file("r.toml", "transport = 'tcp'\ninterface = 'ib0'\ndead-after = 5").unwrap();
        jail.set_env("RANKINE_CONFIG", "r.toml");
        jail.set_env("RANKINE_INTERFACE", "ib1");
        jail.set_env("RANKINE_DEAD_AFTER", "6");
        jail.set_env("RANKINE_HOME", "/elsewhere");
    };
    within(set, || {
        let flags = [flag("dead-after", "7.5")];
        let settings = Settings::load_with(&flags).unwrap();
        assert_eq!((&*settings.transport, settings.interface.as_deref()), ("tcp", Some("ib1")));
        assert_eq!(settings.dead_after(), Duration::from_millis(7500));
        let origins = Settings::origins(&flags).unwrap();
        let from = |name: &str| &*origins.iter().find(|o| o.name == name).unwrap().from;
        assert!(from("transport").ends_with("r.toml"), "{}", from("transport"));
        assert_eq!(from("interface"), "RANKINE_INTERFACE");
        assert_eq!(from("dead-after"), "--dead-after");
        assert_eq!(from("compression"), "default");
    });
}

#[test]
fn what_another_process_is_told_is_what_this_one_has() {
    let settings = Settings {
        transport: "tcp,shm".into(),
        interface: Some("lo".into()),
        compression: Compression::Always,
        verbs_gid_index: Some(3),
        worker_saturation: Saturation::new(f64::INFINITY).unwrap(),
        work_stealing: false,
        ..Settings::default()
    };
    let set = |jail: &mut figment::Jail| {
        settings.variables().into_iter().for_each(|(name, value)| jail.set_env(name, value));
    };
    within(set, || assert_eq!(Settings::load().unwrap(), settings));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let text = |flags: &[(String, String)]| Settings::load_with(flags).unwrap_err().to_string();
    let file = |content: &'static str| {
        move |jail: &mut figment::Jail| {
            jail.create_file("r.toml", content).unwrap();
            jail.set_env("RANKINE_CONFIG", "r.toml");
        }
    };
    within(file("tansport = 'tcp'"), || {
        let told = text(&[]);
        assert!(told.contains("tansport") && told.contains("r.toml") && told.contains("transport"), "{told}");
    });
    within(file("transport = "), || assert!(text(&[]).contains("r.toml")));
    within(
        |jail| jail.set_env("RANKINE_COMPRESSION", "sometimes"),
        || {
            let told = text(&[]);
            assert!(told.contains("sometimes") && told.contains("always"), "{told}");
        },
    );
    within(
        |jail| jail.set_env("RANKINE_CONFIG", "nowhere.toml"),
        || assert!(text(&[]).contains("nowhere.toml")),
    );
    within(
        |_| {},
        || {
            assert!(text(&[flag("transport", "smoke")]).contains("inproc, shm, verbs, mpi, tcp"));
            assert!(text(&[flag("log", "rankine=loud")]).contains("loud"));
            assert!(text(&[flag("dead-after", "-1")]).contains("seconds"));
            assert!(text(&[flag("tls-ca", "ca.pem")]).contains("say tls-cert and tls-key too"));
        },
    );
}

#[test]
fn memory_is_set_in_each_place_in_its_own_words() {
    let set = |jail: &mut figment::Jail| {
        jail.create_file(
            "r.toml",
            "memory-limit = 0.5\nmemory-spill = false\nmemory-pause = 1\nmemory-terminate = 1.0",
        )
        .unwrap();
        jail.set_env("RANKINE_CONFIG", "r.toml");
        jail.set_env("RANKINE_MEMORY_TARGET", "off");
    };
    within(set, || {
        let settings = Settings::load().unwrap();
        assert_eq!(settings.memory_limit, MemoryLimit::Share(0.5));
        let Thresholds { target, spill, pause, terminate } = settings.thresholds();
        assert_eq!((target, spill, pause, terminate), (None, None, Some(1.0), Some(1.0)));
    });
    for (value, limit) in
        [("0", MemoryLimit::None), ("123", MemoryLimit::Bytes(123)), ("0.25", MemoryLimit::Share(0.25))]
    {
        within(
            |_| {},
            || {
                assert_eq!(Settings::load_with(&[flag("memory-limit", value)]).unwrap().memory_limit, limit);
            },
        );
    }
    for (name, value) in
        [("memory-target", "2"), ("memory-spill", "little"), ("memory-pause", "0.65"), ("memory-limit", "-3")]
    {
        within(
            |_| {},
            || {
                let error = Settings::load_with(&[flag(name, value)]).unwrap_err().to_string();
                assert!(error.contains(name), "{error}");
            },
        );
    }
}

#[test]
fn workers_spill_pause_and_end_at_dasks_shares() {
    let shares = Thresholds { target: Some(0.6), spill: Some(0.7), pause: Some(0.8), terminate: Some(0.95) };
    assert_eq!(Settings::default().thresholds(), shares);
    assert_eq!(Thresholds::default(), shares);
}

#[test]
fn results_are_written_where_the_job_has_its_place() {
    within(
        |jail| jail.set_env("SLURM_TMPDIR", "/scratch/7"),
        || {
            assert_eq!(Settings::default().local_directory(), Path::new("/scratch/7"));
        },
    );
    within(
        |jail| jail.set_env("TMPDIR", "/mine"),
        || {
            assert_eq!(Settings::default().local_directory(), Path::new("/mine"));
            let set = Settings { local_directory: Some("/there".into()), ..Settings::default() };
            assert_eq!(set.local_directory(), Path::new("/there"));
        },
    );
    within(|_| {}, || assert_eq!(Settings::default().local_directory(), Path::new("/tmp")));
}

#[test]
fn workers_are_given_as_much_ahead_as_is_said() {
    let read = |value: &str| Settings::load_with(&[flag("worker-saturation", value)]);
    within(
        |_| {},
        || {
            assert_eq!(Settings::load().unwrap().worker_saturation.times(), 1.1);
            for (value, times) in [("2", 2.0), ("0.5", 0.5), ("inf", f64::INFINITY)] {
                assert_eq!(read(value).unwrap().worker_saturation.times(), times);
            }
            for value in ["0", "-1", "nan", "much"] {
                let error = read(value).unwrap_err().to_string();
                assert!(error.contains("worker-saturation") && error.contains("above 0, or inf"), "{error}");
            }
        },
    );
    let file = |jail: &mut figment::Jail| {
        jail.create_file("r.toml", "worker-saturation = inf\nwork-stealing = false").unwrap();
        jail.set_env("RANKINE_CONFIG", "r.toml");
    };
    within(file, || {
        let settings = Settings::load().unwrap();
        assert_eq!((settings.worker_saturation.times(), settings.work_stealing), (f64::INFINITY, false));
    });
}
