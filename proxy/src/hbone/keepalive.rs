//! Asks over an HTTP/2 connection whether the peer is still there. Used by both sides of HBONE.
//!
//! A PING every interval, also when streams are busy or absent, as ztunnel does.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::config::HboneConfig;

pub(crate) struct Keepalive {
    ping_pong: PingPong,
    timer: Pin<Box<Sleep>>,
    asked: bool,
    interval: Duration,
    timeout: Duration,
}

impl Keepalive {
    pub(crate) fn new(ping_pong: PingPong, config: &HboneConfig) -> Self {
        let (interval, timeout) = (config.keepalive_interval, config.keepalive_timeout);
        Self { ping_pong, timer: Box::pin(sleep(interval)), asked: false, interval, timeout }
    }

    /// Ready when the peer did not answer in time. To be polled by the task that drives the
    /// connection, which it wakes once an interval.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked
                && let Poll::Ready(Ok(_)) = self.ping_pong.poll_pong(cx)
            {
                self.asked = false;
                self.timer.as_mut().reset(Instant::now() + self.interval);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.asked {
                return Poll::Ready(());
            }
            // An error means that the connection is ending, which its driver finds out itself.
            self.asked = self.ping_pong.send_ping(Ping::opaque()).is_ok();
            let wait = if self.asked { self.timeout } else { self.interval };
            self.timer.as_mut().reset(Instant::now() + wait);
        }
    }
}
