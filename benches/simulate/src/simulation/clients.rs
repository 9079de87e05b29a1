//! What clients say and hear.

use rankine::protocol::{ClientId, FromClient, ToClient};

use super::{Simulation, number};
use crate::{Policy, events::Event, node::Life};

impl<P: Policy> Simulation<'_, P> {
    pub(super) fn client_says(&mut self, client: usize, word: FromClient) {
        let arrival = self.now + self.setting.network.latency;
        self.events.plan(arrival, Event::ClientSays(self.clients[client].id, word));
    }

    pub(super) fn client_hears(&mut self, id: ClientId, words: Vec<ToClient>) {
        let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else { return };
        for word in words {
            match word {
                ToClient::InMemory { key, id: computation, worker, value, .. } => {
                    let node = &self.nodes[worker.0 as usize];
                    let held = node.given(computation).filter(|_| node.is_up());
                    match value.as_ref().or(held) {
                        Some(value) => client.got(key, number(value)),
                        None if client.awaits(key) => {
                            let missing = FromClient::Missing { id: computation, worker };
                            let waits = if node.life == Life::Vanished { self.setting.patience } else { 0 };
                            let arrival = self.now + waits + 2 * self.setting.network.latency;
                            self.events.plan(arrival, Event::ClientSays(id, missing));
                        }
                        None => {}
                    }
                }
                ToClient::Lost(key) => client.lost(key),
                ToClient::Cancelled(key) => client.cancelled(key),
                ToClient::Erred { key, error } => client.failed(key, error.to_string()),
                ToClient::Welcome { .. }
                | ToClient::Noted(_)
                | ToClient::WorkerGone(_)
                | ToClient::Resumed { .. }
                | ToClient::Worker { .. }
                | ToClient::Answer { .. }
                | ToClient::Alive
                | ToClient::Closing { .. } => {}
            }
        }
    }
}
