//! What peers and clients are given.

use std::rc::Rc;

use rankine_transport::Connection;

use super::Server;
use crate::{
    Result,
    link::{Endpoint, Outbox, split},
    protocol::{FromPeer, TaskId, ToPeer},
    task::Value,
    worker::Stimulus,
};

/// Values whose encoding takes noticeable time are encoded off the I/O thread.
const ENCODE_HERE: u64 = 64 << 10;

impl Server {
    /// Serves a visitor until its link ends.
    pub(super) async fn visitor(self: Rc<Self>, endpoint: Endpoint, connection: Connection) -> Result<()> {
        let (connection, _) = endpoint.welcome(connection).await?;
        let (to, mut from) = split::<ToPeer, FromPeer>(connection, endpoint.compression);
        while let Some(requests) = from.recv().await? {
            for request in requests {
                match request {
                    FromPeer::Get { request, ids } => self.give(request, ids, to.clone()),
                    FromPeer::Forward(data) => self.handle(vec![Stimulus::Forwarded(data)]),
                    FromPeer::Put { request, data } => {
                        let nbytes = data.iter().map(|(_, value)| value.nbytes()).collect();
                        self.handle(vec![Stimulus::Put(data)]);
                        to.put(ToPeer::Stored { request, nbytes });
                    }
                }
            }
        }
        to.close();
        Ok(())
    }

    /// Gives a peer what it asks for. What is on disk is sent from there.
    fn give(self: &Rc<Self>, request: u64, ids: Vec<TaskId>, to: Outbox<ToPeer>) {
        let (mut held, mut on_disk) = (Vec::with_capacity(ids.len()), Vec::new());
        {
            let state = self.state.borrow();
            for (place, id) in ids.iter().enumerate() {
                held.push(state.value(*id).cloned());
                let file = if held[place].is_none() { state.file(*id) } else { None };
                on_disk.extend(file.map(|file| (place, *id, file)));
            }
        }
        if self.limited {
            self.handle(vec![Stimulus::Given(ids)]);
        }
        if on_disk.is_empty() {
            return answer(request, held, to);
        }
        let server = self.clone();
        tokio::task::spawn_local(async move {
            for (place, id, file) in on_disk {
                held[place] = server.read(id, file, true).await.map(|(value, _)| value);
            }
            answer(request, held, to);
        });
    }
}

/// Answers a request for results.
fn answer(request: u64, held: Vec<Option<Value>>, to: Outbox<ToPeer>) {
    if to.carries_objects {
        let data = held.into_iter().map(|value| value.map(Ok)).collect();
        return to.put(ToPeer::Data { request, data });
    }
    let objects = held.iter().flatten().filter(|value| matches!(value, Value::Object(_)));
    let encode = |held: Vec<Option<Value>>| held.into_iter().map(|v| v.map(|v| v.to_wire())).collect();
    if objects.map(Value::nbytes).sum::<u64>() <= ENCODE_HERE {
        return to.put(ToPeer::Data { request, data: encode(held) });
    }
    tokio::task::spawn_local(async move {
        let count = held.len();
        let data =
            tokio::task::spawn_blocking(move || encode(held)).await.unwrap_or_else(|_| vec![None; count]);
        to.put(ToPeer::Data { request, data });
    });
}
