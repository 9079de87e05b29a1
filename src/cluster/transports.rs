//! The transports of this build, as the settings want them.

use std::sync::Arc;

use rankine_transport::{Registry, Secret};
use rankine_transport_inproc::Inproc;
#[cfg(feature = "mpi")]
use rankine_transport_mpi::Mpi;
use rankine_transport_shm::Shm;
use rankine_transport_tcp::Tcp;
#[cfg(feature = "tls")]
use rankine_transport_tcp::Tls;
#[cfg(feature = "verbs")]
use rankine_transport_verbs::Verbs;

use crate::{Result, link::Endpoint, settings::Settings};

/// The transports that the settings allow, the preferred first.
///
/// # Errors
/// If one of them is not in this build, or cannot be set up so.
pub fn transports(settings: &Settings) -> Result<Registry> {
    // A transport more is a line more; the order is that of `auto`.
    let all = Registry::new().with(Inproc).with(Shm);
    #[cfg(feature = "verbs")]
    let all = all.with(verbs(settings));
    #[cfg(feature = "mpi")]
    let all = all.with(Mpi::default());
    let all = all.with(tcp(settings)?);
    match settings.schemes() {
        Some(schemes) => Ok(all.only(&schemes)?),
        None => Ok(all),
    }
}

#[cfg(feature = "verbs")]
fn verbs(settings: &Settings) -> Verbs {
    Verbs {
        device: settings.verbs_device.clone(),
        port: settings.verbs_port,
        gid_index: settings.verbs_gid_index.map(u32::from),
        ..Verbs::default()
    }
}

fn tcp(settings: &Settings) -> Result<Tcp> {
    let mut tcp = Tcp::default().dead_after(settings.dead_after());
    if let Some(interface) = &settings.interface {
        tcp = tcp.interface(interface);
    }
    let (Some(_certificate), Some(_key), Some(_authority)) =
        (&settings.tls_cert, &settings.tls_key, &settings.tls_ca)
    else {
        return Ok(tcp);
    };
    #[cfg(feature = "tls")]
    return Ok(tcp.tls(Tls::from_files(_certificate, _key, _authority)?));
    #[cfg(not(feature = "tls"))]
    Err(crate::Error::Usage(
        "this program was built without TLS; build it with the cargo feature `tls`".into(),
    ))
}

/// All that a process of a cluster needs to reach others.
pub(super) fn endpoint(settings: &Settings, secret: Secret) -> Result<Endpoint> {
    let registry = transports(settings)?;
    let (registry, secret) = (Arc::new(registry), Arc::new(secret));
    Ok(Endpoint { registry, secret, compression: settings.compression, silence: settings.dead_after() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schemes(transport: &str) -> Vec<&'static str> {
        let settings = Settings { transport: transport.into(), ..Settings::default() };
        transports(&settings).unwrap().schemes().collect()
    }

    #[test]
    fn the_fastest_comes_first_unless_another_order_is_asked_for() {
        let all = [
            ("inproc", true),
            ("shm", true),
            ("verbs", cfg!(feature = "verbs")),
            ("mpi", cfg!(feature = "mpi")),
            ("tcp", true),
        ];
        let built: Vec<&str> =
            all.into_iter().filter_map(|(scheme, built)| built.then_some(scheme)).collect();
        assert_eq!(schemes("auto"), built);
        assert_eq!(schemes("tcp,inproc"), ["tcp", "inproc"]);
    }
}
