//! A real browser without a window: Chromium, driven by the DevTools protocol over two pipes. So the tests
//! need neither a network nor a package of another language.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{DEADLINE, eventually};

/// The names of Chromium's program in distributions.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// Maximum time for the browser to start, and to answer. A busy machine starts it slowly.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running browser with one page.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Arc<Messages>,
    sent: u64,
    /// The session of the protocol with the page.
    page: Option<String>,
    /// Home and profile.
    _directory: TempDir,
}

#[derive(Default)]
struct Messages {
    state: Mutex<MessageState>,
    changed: Condvar,
}

#[derive(Default)]
struct MessageState {
    answers: HashMap<u64, Value>,
    /// Errors that the page has caused: exceptions, refused resources, violations of the policy.
    errors: Vec<String>,
    standard_error: String,
    is_over: bool,
}

impl Messages {
    fn state(&self) -> MutexGuard<'_, MessageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, message: Value) {
        let mut state = self.state();
        if let Some(id) = message["id"].as_u64() {
            state.answers.insert(id, message);
        } else {
            let parameters = &message["params"];
            let error = match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => Some(&parameters["exceptionDetails"]),
                Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                    Some(&parameters["entry"])
                }
                Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => Some(parameters),
                _ => None,
            };
            state.errors.extend(error.map(Value::to_string));
        }
        self.changed.notify_all();
    }
}

impl Browser {
    /// Starts the browser. `None`, after a message: it is not installed.
    ///
    /// # Panics
    /// It is installed and does not start.
    pub fn start() -> Option<Self> {
        let has = |program: &&&str| {
            let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output();
            found.is_ok_and(|found| found.status.success())
        };
        let Some(program) = PROGRAMS.iter().find(has) else {
            eprintln!(
                "skipped: there is no Chromium; Debian has it in `chromium`, which ./dev test installs"
            );
            return None;
        };
        let directory = tempfile::tempdir().expect("a temporary directory");
        let home = directory.path().to_str().expect("a temporary directory has a plain name").to_owned();
        // Chromium reads from descriptor 3 and writes to 4. Its sandbox needs privileges that a test may
        // lack; it shows our own pages only.
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>&2", "sh", program])
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-dev-shm-usage", "--disable-crash-reporter", "--disable-breakpad"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
            .args([
                "--disable-extensions",
                "--disable-sync",
                "--hide-scrollbars",
                "--force-color-profile=srgb",
            ])
            .args(["--no-proxy-server", "--window-size=1280,800", &format!("--user-data-dir={home}/profile")])
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", format!("{home}/.config"))
            .env("XDG_CACHE_HOME", format!("{home}/.cache"))
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().expect("a shell starts");
        let input = child.stdin.take().expect("its input is a pipe");
        let messages = Arc::<Messages>::default();
        follow(child.stdout.take(), Arc::clone(&messages), |messages, text| {
            if let Ok(message) = serde_json::from_str(text) {
                messages.note(message);
            }
        });
        let errors = child.stderr.take();
        let captured = Arc::clone(&messages);
        thread::spawn(move || {
            for line in
                errors.into_iter().flat_map(|errors| BufReader::new(errors).lines().map_while(Result::ok))
            {
                captured.state().standard_error += &format!("{line}\n");
            }
        });
        let mut browser = Self { child, input, messages, sent: 0, page: None, _directory: directory };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", &attach);
        browser.page = Some(attached["sessionId"].as_str().expect("the session has an id").to_owned());
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        Some(browser)
    }

    /// Calls a method of the protocol and returns its result.
    ///
    /// # Panics
    /// The browser answers with an error, or not in time.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.sent += 1;
        let id = self.sent;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if let Some(page) = &self.page {
            message["sessionId"] = json!(page);
        }
        let text = message.to_string() + "\0";
        let end = Instant::now() + PATIENCE;
        let written = self.input.write_all(text.as_bytes());
        let mut state = self.messages.state();
        while !state.answers.contains_key(&id) {
            let left = end.saturating_duration_since(Instant::now());
            let is_lost = written.is_err() || state.is_over || left.is_zero();
            assert!(!is_lost, "no answer to {method}; Chromium says:\n{}", state.standard_error);
            (state, _) =
                self.messages.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        let answer = state.answers.remove(&id).expect("the answer has just been seen");
        assert!(answer.get("error").is_none(), "{method} {parameters}: {answer}");
        answer["result"].clone()
    }

    /// Opens an address, without waiting for it.
    ///
    /// # Panics
    /// The browser cannot open it.
    pub fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", &json!({ "url": url }));
        assert!(answer.get("errorText").is_none(), "{url}: {answer}");
    }

    /// The value of a JavaScript expression.
    ///
    /// # Panics
    /// The expression throws.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until a JavaScript expression has a value that is not false, empty or missing.
    ///
    /// # Panics
    /// It has none within [`DEADLINE`]. The message has the text of the page.
    pub fn wait_for(&mut self, expression: &str) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            // A page that is being loaded has no body.
            let parameters = json!({ "expression": expression, "returnByValue": true });
            let answer = self.call("Runtime.evaluate", &parameters);
            let value = answer["result"]["value"].clone();
            if !matches!(&value, Value::Null | Value::Bool(false)) && value != json!("") && value != json!(0)
            {
                return value;
            }
            if Instant::now() > end {
                let text = self.evaluate("document.body.innerText");
                panic!(
                    "waited {DEADLINE:?} for {expression}; the page shows:\n{}",
                    text.as_str().unwrap_or("-")
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the page shows a text.
    ///
    /// # Panics
    /// It does not show it in time.
    pub fn wait_for_text(&mut self, text: &str) {
        self.wait_for(&format!("document.body?.innerText.includes({})", json!(text)));
    }

    /// Clicks with the mouse on the visible element of this selector and this text (any, if it is empty).
    ///
    /// A live page may move or replace the element between the look and the click. Such a click gets nowhere
    /// or, if it meets another element, is kept from it, and the next attempt follows.
    ///
    /// # Panics
    /// No click has met such an element in time.
    pub fn click(&mut self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        let aim = format!(
            "(() => {{
                const isWanted = (e) => e?.innerText.includes({text}) && e.checkVisibility();
                const e = [...document.querySelectorAll({selector})].find(isWanted);
                if (!e) return null;
                e.scrollIntoView({{ block: 'nearest' }});
                const r = e.getBoundingClientRect();
                const [x, y] = [r.x + r.width / 2, r.y + r.height / 2];
                if (!e.contains(document.elementFromPoint(x, y))) return null;
                removeEventListener('click', window.guardOfClicks, true);
                window.hasClicked = false;
                window.guardOfClicks = (event) => {{
                    if (isWanted(event.target.closest({selector}))) window.hasClicked = true;
                    else {{ event.stopImmediatePropagation(); event.preventDefault(); }}
                }};
                addEventListener('click', window.guardOfClicks, true);
                return [x, y];
            }})()"
        );
        let end_of_guard = "removeEventListener('click', window.guardOfClicks, true); window.hasClicked";
        eventually(&format!("a click on {selector} with {text}"), || {
            let place = self.evaluate(&aim);
            if place.is_null() {
                return None;
            }
            for kind in ["mousePressed", "mouseReleased"] {
                let event =
                    json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
                self.call("Input.dispatchMouseEvent", &event);
            }
            (self.evaluate(end_of_guard) == json!(true)).then_some(())
        });
    }

    /// Types a text where the focus is.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({ "text": text }));
    }

    /// Replaces the text of the field with this selector.
    ///
    /// # Panics
    /// There is no such field in time.
    pub fn fill(&mut self, selector: &str, text: &str) {
        self.wait_for(&format!(
            "(() => {{ const e = document.querySelector({}); e?.focus(); e?.select?.(); return !!e; }})()",
            json!(selector)
        ));
        self.type_text(text);
    }

    /// Presses a key: a letter, or a name such as `Enter`.
    pub fn press(&mut self, key: &str) {
        let text = match key {
            "Enter" => "\r",
            key if key.chars().count() == 1 => key,
            _ => "",
        };
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            _ => 0,
        };
        let mut event = json!({ "type": "keyDown", "key": key, "windowsVirtualKeyCode": code });
        if !text.is_empty() {
            event["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", &event);
        self.call(
            "Input.dispatchKeyEvent",
            &json!({ "type": "keyUp", "key": key, "windowsVirtualKeyCode": code }),
        );
    }

    /// Sets the size of the window, and light or dark colours.
    pub fn look(&mut self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// The errors of pages since the last call: exceptions, violations of the policy, refused requests.
    pub fn take_errors(&mut self) -> Vec<String> {
        std::mem::take(&mut self.messages.state().errors)
    }

    /// Writes a picture of the page.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn screenshot(&mut self, file: &Path) {
        let answer = self.call("Page.captureScreenshot", &json!({ "format": "png" }));
        let text = answer["data"].as_str().expect("a picture in Base64");
        fs::write(file, from_base64(text)).expect("the picture's file");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All processes of the browser are in its group. It has nothing to save.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- chromium ---\n{}", self.messages.state().standard_error);
        }
    }
}

/// Calls `note` with each message of the protocol: texts that end with a zero byte.
fn follow(stream: Option<impl Read + Send + 'static>, messages: Arc<Messages>, note: fn(&Messages, &str)) {
    thread::spawn(move || {
        if let Some(stream) = stream {
            for message in BufReader::new(stream).split(0).map_while(Result::ok) {
                note(&messages, &String::from_utf8_lossy(&message));
            }
        }
        messages.state().is_over = true;
        messages.changed.notify_all();
    });
}

/// Decodes Base64 (RFC 4648 section 4).
fn from_base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for six in text.bytes().filter_map(value) {
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc_is_decoded() {
        for (text, decoded) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(from_base64(text), decoded.as_bytes());
        }
    }
}
