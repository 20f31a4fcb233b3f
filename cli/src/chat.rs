//! The chat: one task that waits for a line, a message, or the refresh timer.

use std::{
    borrow::Cow,
    collections::VecDeque,
    io::{self, IsTerminal as _, Write as _},
    str::FromStr,
    sync::mpsc::SyncSender,
    time::Duration,
};

use anstream::adapter::strip_str;
use clap::Args;
use jiff::tz::TimeZone;
use keypool_client::{Error as ClientError, Event, Group, Incoming, MlsClient};
use keypool_openapi::{InvalidId, Undelivered};
use reedline::{ExternalPrinter, Prompt, PromptEditMode, PromptHistorySearch, Reedline, Signal};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout},
};

use crate::{
    colour::warning,
    error::{Error, Result},
    groups,
    incoming::{self, Place},
    output::Output,
    retries::Retries,
    sentences, tables,
    text::words,
};

/// The number of seconds that a request waits on the server for a message.
const WAIT: u32 = 30;

/// The largest number of lines that wait to be shown.
const MAX_LINES: usize = 1_000;

const QUIT: &str = "/quit";

/// The number of changes that /history shows.
const SHOWN_CHANGES: usize = 20;

/// How long the end of a chat tries to send what is not sent yet.
const LAST_TRY: Duration = Duration::from_secs(10);

/// The pause after an error, before the loop calls the server again.
const PAUSE: Duration = Duration::from_secs(2);

const HELP: &str = "\
/invite USER…         add all devices of users
/remove USER          remove all devices of a user, or one: /remove USER/DEVICE
/members              the devices in this group
/history              who added and removed whom, as far as this device saw it
/verify USER          the number that you and a user compare
/renew USER/DEVICE…   replace this group, after a refused change, by a new one without these devices
/groups               the groups that this device is in
/switch GROUP         talk in another group
/status               the status of this device's KeyPackage pool
/refresh              refresh the pool now
/leave                leave the group
/help                 this list
/quit                 end; so does Ctrl-D
Put a name with spaces in quotes. Anything else is said to the group.";

/// The arguments of `keypool chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The group, by its name or the beginning of its id
    group: String,
    /// Refresh the pool after this number of messages
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    refresh_messages: u32,
    /// Refresh the pool after this number of seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    refresh_seconds: u64,
}

/// The source of lines, and the output, which does not disturb the line that is being typed.
struct Terminal {
    lines: mpsc::UnboundedReceiver<String>,
    shown: Option<SyncSender<String>>,
}

impl Terminal {
    /// Uses an editor on a terminal, and reads line by line from a pipe.
    fn open() -> Self {
        let (send, lines) = mpsc::unbounded_channel();
        if !io::stdin().is_terminal() {
            std::thread::spawn(move || {
                for line in io::stdin().lines() {
                    if line.map_or(true, |line| send.send(line).is_err()) {
                        return;
                    }
                }
            });
            return Self { lines, shown: None };
        }
        let printer = ExternalPrinter::new(MAX_LINES);
        let shown = printer.sender();
        // Its history is in memory only, so that no messages are stored unencrypted.
        let mut editor =
            Reedline::create().with_external_printer(printer).with_ansi_colors(has_colours()).use_bracketed_paste(true);
        // Reading a terminal blocks, so use a thread. It ends with the program, or with Ctrl-D.
        std::thread::spawn(move || {
            while let Ok(Signal::Success(line)) = editor.read_line(&ChatPrompt) {
                // Do not read another line after this one, so that the program ends with a clean line.
                let is_last = line.trim() == QUIT;
                if send.send(line).is_err() || is_last {
                    return;
                }
            }
        });
        Self { lines, shown: Some(shown) }
    }

    fn show(&self, text: &str) {
        show(self.shown.as_ref(), text);
    }
}

/// Shows a text above the line that is being typed, or on the standard output.
fn show(shown: Option<&SyncSender<String>>, text: &str) {
    let text = if has_colours() { text.to_owned() } else { strip_str(text).to_string() };
    let is_shown = shown.is_some_and(|shown| shown.try_send(text.clone()).is_ok());
    if !is_shown {
        // If the terminal is closed, there is nowhere to report the error.
        let _ = writeln!(anstream::stdout(), "{text}");
    }
}

fn has_colours() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// The prompt.
struct ChatPrompt;

impl Prompt for ChatPrompt {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "  ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        format!("looking for {}: ", search.term).into()
    }
}

/// A chat in a group.
struct Chat<'c> {
    client: &'c MlsClient,
    retries: &'c Retries,
    group: Group,
    terminal: Terminal,
    /// The texts that could not be sent yet, each with its group.
    unsent: VecDeque<(Group, String)>,
    messages_since_refresh: u32,
    args: ChatArgs,
    timer: Interval,
}

/// Runs a chat until the user ends it. Shows errors in one line and continues. Fails if texts are left unsent at the
/// end.
pub async fn run_client_loop(args: ChatArgs, client: &MlsClient, retries: &Retries, output: &Output) -> Result<()> {
    if output.is_json() {
        return Err(Error::Usage(
            "`keypool chat` has no JSON output: use `keypool send` and `keypool receive`".to_owned(),
        ));
    }
    let group = client.membership().find_group(&args.group)?;
    let every = Duration::from_secs(args.refresh_seconds);
    let mut timer = interval_at(Instant::now(), every);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let terminal = Terminal::open();
    let shown = terminal.shown.clone();
    retries.show_in(Box::new(move |text| show(shown.as_ref(), text)));
    let (unsent, messages_since_refresh) = (VecDeque::new(), 0);
    let mut chat = Chat { client, retries, group, terminal, unsent, messages_since_refresh, args, timer };
    chat.terminal.show(&format!("This is {}. Type /help for the commands.", chat.group.name));
    chat.run().await;
    chat.end().await
}

/// The reason why the loop woke up.
enum Wake {
    Line(Option<String>),
    Received(Result<Vec<Incoming>, ClientError>),
    Timer,
}

impl Chat<'_> {
    async fn run(&mut self) {
        loop {
            let membership = self.client.membership();
            // Cancelling a receive loses nothing: processed messages are in the store.
            let wake = tokio::select! {
                biased;
                line = self.terminal.lines.recv() => Wake::Line(line),
                _ = self.timer.tick() => Wake::Timer,
                received = membership.receive(WAIT) => Wake::Received(received),
            };
            match wake {
                Wake::Line(None) => return,
                Wake::Line(Some(line)) => {
                    if self.handle_line(line.trim()).await {
                        return;
                    }
                }
                Wake::Timer => {
                    self.flush().await;
                    self.refresh().await;
                }
                Wake::Received(Ok(incoming)) => {
                    self.server_answered();
                    self.show_incoming(&incoming).await;
                }
                Wake::Received(Err(error)) if error.is_retryable() => {
                    self.retries.tell(&error);
                    self.pause().await;
                }
                Wake::Received(Err(error)) => {
                    self.show_error("cannot receive", &error.with_causes());
                    self.pause().await;
                }
            }
            if self.messages_since_refresh >= self.args.refresh_messages {
                self.refresh().await;
            }
        }
    }

    /// Says that the server is there again, if it was said to be away.
    fn server_answered(&mut self) {
        if self.retries.forget() {
            self.terminal.show("The server is there again.");
        }
    }

    /// Pauses before the next attempt, unless a typed line waits.
    async fn pause(&mut self) {
        if self.terminal.lines.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Handles a typed line. Returns whether it was the last.
    async fn handle_line(&mut self, line: &str) -> bool {
        let words = if line.trim_start().starts_with('/') { words(line) } else { vec![line.trim().to_owned()] };
        let mut words = words.iter().map(String::as_str).filter(|word| !word.is_empty());
        let outcome = match (words.next(), words.collect::<Vec<_>>().as_slice()) {
            (None, _) => Ok(()),
            (Some(QUIT), _) => return true,
            (Some("/help"), _) => {
                self.terminal.show(HELP);
                Ok(())
            }
            (Some("/members"), _) => self.members(),
            (Some("/history"), _) => self.history(),
            (Some("/groups"), _) => self.groups(),
            (Some("/switch"), [name]) => self.switch(name),
            (Some("/invite"), users @ [_, ..]) => self.invite(users).await,
            (Some("/remove"), [user]) => self.remove(user).await,
            (Some("/verify"), [user]) => self.verify(user).await,
            (Some("/renew"), without) => self.renew(without).await,
            (Some("/status"), _) => self.status().await,
            (Some("/refresh"), _) => {
                self.refresh_loudly().await;
                Ok(())
            }
            (Some("/leave"), _) => self.leave().await,
            (Some(command), _) if command.starts_with('/') => {
                self.terminal.show(&format!("Unknown or incomplete command {command}. Type /help."));
                Ok(())
            }
            _ => {
                self.unsent.push_back((self.group.clone(), line.to_owned()));
                if !self.flush().await {
                    self.terminal.show(&warning(&format!("{} not sent yet, and will be", self.unsent.len())));
                }
                Ok(())
            }
        };
        if let Err(error) = outcome {
            self.show_error("that did not work", &error.with_causes());
        }
        false
    }

    /// Sends the typed texts in order. After a temporary error, the rest is sent later. Returns whether all are sent.
    async fn flush(&mut self) -> bool {
        let sent = self.send_unsent().await;
        if let Err(error) = &sent {
            self.retries.tell(error);
        }
        sent.is_ok()
    }

    /// Tries a last time to send the remaining texts.
    async fn end(mut self) -> Result<()> {
        // The editor has ended and shows nothing any more.
        self.terminal.shown = None;
        if !self.unsent.is_empty() {
            self.terminal.show(&format!("Trying once more to send what is not sent yet: {}.", self.unsent.len()));
        }
        let outcome = timeout(LAST_TRY, self.send_unsent()).await;
        let source = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(source)) => Some(Box::new(source)),
            Err(_) => None,
        };
        let texts = self.unsent.iter().map(|(group, text)| format!("{text:?} to {}", group.name)).collect();
        Err(Error::Unsent { texts, source })
    }

    /// Sends the typed texts in order. Fails if the rest has to wait.
    async fn send_unsent(&mut self) -> Result<(), ClientError> {
        while let Some((group, text)) = self.unsent.front() {
            match self.client.membership().send(&group.group_id, text).await {
                Ok(undelivered) => {
                    self.server_answered();
                    self.show_undelivered(&undelivered);
                    self.unsent.pop_front();
                    self.messages_since_refresh += 1;
                }
                Err(error) if error.is_retryable() => return Err(error),
                Err(ClientError::UnknownGroup(_)) => {
                    let gone = format!("this device is no longer in {}", group.name);
                    self.unsent.pop_front();
                    self.show_error("not sent", &gone);
                }
                Err(error) => {
                    self.unsent.pop_front();
                    self.show_error("not sent", &error.with_causes());
                }
            }
        }
        Ok(())
    }

    /// Shows received items, and marks them as done after that.
    async fn show_incoming(&mut self, incoming: &[Incoming]) {
        let groups = self.client.membership().groups().unwrap_or_default();
        for one in incoming {
            if matches!(one.event, Event::Text { .. } | Event::Content { .. }) {
                self.messages_since_refresh += 1;
            }
            let is_nothing = matches!(one.event, Event::Ignored { .. } | Event::Changed { .. } | Event::Stranger);
            let time = one.sent_at.to_zoned_datetime(TimeZone::system()).strftime("%H:%M").to_string();
            let is_here = one.group == self.group.id || one.group.is_empty();
            let group = incoming::group_name(&groups, one);
            let place = if is_here { String::new() } else { format!(" [{group}]") };
            for line in incoming::lines(one, Place::Chat).iter().skip(usize::from(is_nothing)) {
                self.terminal.show(&format!("{time}{place} {line}"));
            }
            // The old group is read-only now.
            let new = match &one.event {
                Event::Renewed { old_group, .. } if *old_group == self.group.id => {
                    groups.iter().find(|group| group.id == one.group)
                }
                _ => None,
            };
            if let Some(new) = new {
                self.switch_to(new.clone());
            }
        }
        if let Err(error) = self.client.membership().done(incoming) {
            self.show_error("received items may be shown again", &error.with_causes());
        }
        if !incoming.is_empty() {
            self.flush().await;
        }
    }

    fn members(&mut self) -> Result<()> {
        let members = self.client.membership().members(&self.group.group_id)?;
        self.terminal.show(&sentences::names(&members));
        Ok(())
    }

    fn groups(&mut self) -> Result<()> {
        let groups = self.client.membership().groups()?;
        let names: Vec<_> = groups.into_iter().map(|group| group.name).collect();
        self.terminal.show(&names.join(", "));
        Ok(())
    }

    fn history(&mut self) -> Result<()> {
        let mut changes = self.client.membership().history(&self.group.group_id)?;
        let last = changes.split_off(changes.len().saturating_sub(SHOWN_CHANGES));
        self.terminal.show(&tables::text(tables::history(&last)));
        Ok(())
    }

    fn switch(&mut self, name: &str) -> Result<()> {
        let group = self.client.membership().find_group(name)?;
        self.switch_to(group);
        Ok(())
    }

    fn switch_to(&mut self, group: Group) {
        self.terminal.show(&format!("This is {}.", group.name));
        self.group = group;
    }

    async fn invite(&mut self, users: &[&str]) -> Result<()> {
        let users = users.iter().map(|name| parsed(name)).collect::<Result<Vec<_>>>()?;
        let invited = self.client.membership().invite(&self.group.group_id, &users).await?;
        self.terminal.show(&sentences::invited_text(&self.group, &invited));
        Ok(())
    }

    async fn remove(&mut self, name: &str) -> Result<()> {
        let removed = groups::remove(&self.client.membership(), &self.group, name).await;
        if let Err(Error::Client(error)) = &removed
            && let ClientError::OwnLeaf { device } = &**error
        {
            return Err(Error::Usage(format!("{device} is this device itself: type /leave to leave the group")));
        }
        let removed = removed?;
        let warnings = sentences::undelivered_text(&removed.undelivered);
        self.terminal.show(&format!("{} removed.{warnings}", sentences::names(&removed.removed)));
        Ok(())
    }

    async fn verify(&mut self, name: &str) -> Result<()> {
        let number = self.client.membership().safety_number(&parsed(name)?).await?;
        self.terminal.show(&sentences::safety_number_text(&number));
        Ok(())
    }

    /// Renews this group, and continues in the new one.
    async fn renew(&mut self, without: &[&str]) -> Result<()> {
        let without = without.iter().map(|name| parsed(name)).collect::<Result<Vec<_>>>()?;
        let renewed = self.client.membership().renew(&self.group.group_id, &without).await?;
        self.terminal.show(&sentences::renewed_text(&renewed));
        self.switch_to(renewed.group);
        Ok(())
    }

    async fn status(&mut self) -> Result<()> {
        let status = self.client.status().await?;
        self.terminal.show(&format!("{}\n{}", sentences::bar(&status), sentences::health_text(&status)));
        Ok(())
    }

    async fn leave(&mut self) -> Result<()> {
        let undelivered = self.client.membership().leave(&self.group.group_id).await?;
        let warnings = sentences::undelivered_text(&undelivered);
        self.terminal.show(&format!("The others are asked to let this device go.{warnings}"));
        Ok(())
    }

    /// Refreshes the pool, and shows only errors.
    async fn refresh(&mut self) {
        self.messages_since_refresh = 0;
        self.timer.reset();
        match self.client.refresh_key_packages(&|_| {}).await {
            Ok(report) => {
                self.server_answered();
                tracing::info!(?report, "refreshed the pool");
            }
            Err(error) if error.is_retryable() => self.retries.tell(&error),
            Err(error) => self.show_error("the pool could not be refreshed", &error.with_causes()),
        }
    }

    async fn refresh_loudly(&mut self) {
        self.messages_since_refresh = 0;
        self.timer.reset();
        match self.client.refresh_key_packages(&|_| {}).await {
            Ok(report) => self.terminal.show(&sentences::refresh_text(&report)),
            Err(error) => self.show_error("the pool could not be refreshed", &error.with_causes()),
        }
    }

    fn show_undelivered(&mut self, undelivered: &[Undelivered]) {
        if !undelivered.is_empty() {
            self.terminal.show(sentences::undelivered_text(undelivered).trim_start());
        }
    }

    /// Shows an error in one line.
    fn show_error(&mut self, what: &str, error: &str) {
        tracing::warn!(error, what);
        self.terminal.show(&sentences::error_line(what, error));
    }
}

/// Reads a user's or a device's name.
fn parsed<T: FromStr<Err = InvalidId>>(name: &str) -> Result<T> {
    name.parse().map_err(|error: InvalidId| Error::Usage(error.to_string()))
}
