//! What the service manager is told (`sd_notify`), where there is one.

use std::time::Duration;

use sd_notify::NotifyState;

/// Start-up is over: units ordered after this one may start.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon finishes what is running; the manager waits for its stop limit.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One line on what the daemon is doing, shown by `systemctl status`.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Tells the manager's watchdog at half its interval that the runtime still turns, for as long as
/// the process lives. Does nothing where no watchdog is set.
pub fn start_watchdog() {
    if let Some(interval) = sd_notify::watchdog_enabled() {
        let period = (interval / 2).max(Duration::from_millis(10));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(period);
            loop {
                ticks.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
        });
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot tell the service manager: {error}");
    }
}
