//! What carries the chunks, and whether they are made smaller on their way.

use rankine::{Error, LocalCluster, Settings, array::Chunk, blocking::Client, protocol::Metrics};
use rankine_transport::compression::Compression;

use super::{Outcome, big_results_travel_between_workers, until};

/// Settings with these transports and that policy.
fn settings(transport: &str, compression: Compression) -> Settings {
    let mut settings = Settings::default();
    settings.transport = transport.into();
    settings.compression = compression;
    settings
}

pub fn chunks_are_compressed_where_that_is_asked_for() -> Outcome {
    for (compression, saves) in [(Compression::Always, true), (Compression::Off, false)] {
        let builder = LocalCluster::builder().workers(2).threads(1).processes(true);
        let cluster = builder.settings(settings("tcp", compression)).start()?;
        let client = Client::from(cluster.client()?);
        big_results_travel_between_workers(&cluster, &client)?;
        let sum = |of: fn(&Metrics) -> u64| -> Result<u64, Error> {
            Ok(client.scheduler_info()?.workers.iter().map(|worker| of(&worker.metrics)).sum())
        };
        // A million numbers went to the other worker, and as many to the client.
        until("it is counted", || Ok(sum(|m| m.sent)? >= 16_000_000))?;
        if saves {
            until("both were made smaller", || Ok(sum(|m| m.saved)? > 8_000_000))?;
        }
        assert_eq!(sum(|m| m.saved)? > 0, saves, "{compression}");
    }
    Ok(())
}

/// Between processes of a host a chunk lies in memory once, and counts once.
pub fn shared_chunks_count_once() -> Outcome {
    const CHUNK: u64 = 128 << 20;
    let builder = LocalCluster::builder().workers(2).threads(1).processes(true);
    let cluster = builder.settings(settings("shm", Compression::Auto)).start()?;
    let client = Client::from(cluster.client()?);
    let names: Vec<String> =
        client.scheduler_info()?.workers.iter().map(|worker| worker.info.name.to_string()).collect();
    let make = || Chunk::write(&[(CHUNK / 8) as usize], |numbers: &mut [f64]| numbers.fill(0.5));
    let chunk = client.options().workers([&*names[0]]).submit(make, ());
    let sum =
        client.options().workers([&*names[1]]).submit(|chunk: Chunk<f64>| chunk.view().sum(), (&chunk,));
    assert_eq!(sum.result()?, CHUNK as f64 / 16.0);
    let resident = || -> Result<Vec<u64>, Error> {
        let workers = client.scheduler_info()?.workers;
        let of =
            |name: &String| workers.iter().find(|w| *w.info.name == **name).map_or(0, |w| w.metrics.resident);
        Ok(names.iter().map(of).collect())
    };
    until("its maker accounts for it", || Ok(resident()?[0] > CHUNK))?;
    until("who reads it does not", || Ok(resident()?[1] < CHUNK / 2))?;
    Ok(())
}

pub fn the_transport_asked_for_is_taken() -> Outcome {
    for (transport, processes) in
        [("tcp", true), ("shm", true), ("tcp", false), ("inproc,shm,tcp", true), ("inproc", false)]
    {
        let builder = LocalCluster::builder().workers(2).threads(1).processes(processes);
        let cluster = builder.settings(settings(transport, Compression::Auto)).start()?;
        let client = Client::from(cluster.client()?);
        big_results_travel_between_workers(&cluster, &client)?;
        for worker in client.scheduler_info()?.workers {
            let schemes: Vec<&str> =
                worker.info.contact.split(' ').filter_map(|address| address.split("://").next()).collect();
            assert_eq!(schemes.join(","), transport);
            assert!(worker.info.contact.ends_with(&*worker.info.address));
        }
    }
    let refused = LocalCluster::builder().settings(settings("mpi", Compression::Auto)).start();
    let text = refused.err().ok_or("it should be refused")?.to_string();
    assert!(text.contains("feature `mpi`") || text.contains("mpirun"), "{text}");
    Ok(())
}
