//! Notifications to the service manager (`sd_notify`), if there is one.

use std::time::Duration;

use sd_notify::NotifyState;

/// Reports that the start is complete. Units ordered after this one may start.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports that the daemon is stopping. The manager waits for at most its stop timeout.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Sets the status line of `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Notifies the manager's watchdog at half its interval, as long as the runtime runs tasks. Does nothing if
/// there is no watchdog.
pub fn start_watchdog() {
    if let Some(interval) = sd_notify::watchdog_enabled() {
        let period = (interval / 2).max(Duration::from_millis(10));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(period);
            loop {
                ticks.tick().await;
                notify(&[NotifyState::Watchdog]);
            }
        });
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot notify the service manager: {error}");
    }
}
