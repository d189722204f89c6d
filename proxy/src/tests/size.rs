//! How much each connection holds while it is open. A future that grows is memory times connections.
use super::mesh::*;
use crate::inbound::stream::Stream;
use crate::net::copy::{End, copy_both_ways};
use crate::net::traffic::Traffic;
use crate::outbound::connection::Connection;
use tokio::net::TcpStream;

#[tokio::test]
async fn the_futures_of_a_connection_stay_small() {
    let listener = app().await;
    let stream = async || TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
    let traffic = Traffic::default();
    let (mut client, mut upstream) = (End::Tcp(stream().await), End::Tcp(stream().await));
    let copy = copy_both_ways(&mut client, &mut upstream, &traffic, None);
    let check =
        |what: &str, bytes: usize, limit: usize| assert!(bytes <= limit, "{what}: {bytes} bytes (limit {limit})");
    check("copying", size_of_val(&copy), 120);
    check("outbound", of_method(&Connection::serve), 420);
    check("a flow", of_function5(&crate::inbound::flow::serve), 550);
    check("what carries it", of_function6(&crate::inbound::connection::serve), 64);
    check("a stream", of_method2(&Stream::serve), 370);
}

/// The size of the future that a method makes.
fn of_method<S, A, F: Future>(_: &impl Fn(S, A) -> F) -> usize {
    size_of::<F>()
}

fn of_function5<A, B, C, D, E, F: Future>(_: &impl Fn(A, B, C, D, E) -> F) -> usize {
    size_of::<F>()
}

fn of_function6<A, B, C, D, E, G, F: Future>(_: &impl Fn(A, B, C, D, E, G) -> F) -> usize {
    size_of::<F>()
}

fn of_method2<S, A, B, F: Future>(_: &impl Fn(S, A, B) -> F) -> usize {
    size_of::<F>()
}
