// Does in the browser what Gradio's components leave out: an answer is rejoined when the connection
// to it was lost, whoever scrolls up stays there while one streams, what people typed is shown as
// they typed it, text runs in its own direction, Enter that ends a word of an input method sends
// nothing, a draft outlives a reload, and what is copied is free of the joiners of
// `escape_markdown`. Runs once, on load.
() => {
  const chat = document.querySelector("#tb-chat");
  if (!chat) return; // a login is asked for first
  const withoutJoiners = (text) => text.replace(/(?<=[<!])\u2060/g, "");

  // Gradio may take the end of its event stream for silence; a reload rejoins the answer.
  const SILENCE_MS = 6000;
  const isLost = () =>
    document.querySelector("#tb-composer .stop-button") && Date.now() - window.talkback.heard > SILENCE_MS;
  setInterval(async () => {
    if (!isLost()) return;
    const answer = await fetch(location.href).catch(() => null);
    if (answer?.ok && isLost()) location.reload(); // what a busy page had not heard has arrived by now
  }, 2000);

  let atEnd = true;
  const log = () => chat.querySelector("[role=log]");
  chat.addEventListener("scroll", ({ target }) => {
    if (target === log()) atEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
  }, true);

  const showAsTyped = () => {
    const questions = (window.talkback?.bubbles ?? []).filter(({ role }) => role === "user");
    chat.querySelectorAll(".user-row").forEach((row, index) => {
      const shown = row.querySelector(".prose");
      if (!shown || !questions[index]) return;
      const typed = withoutJoiners(questions[index].text);
      if (shown.textContent !== typed || shown.children.length) shown.textContent = typed;
    });
  };
  const follow = () => {
    showAsTyped();
    for (const text of chat.querySelectorAll("[dir=ltr]")) text.dir = "auto";
    if (atEnd && log()) log().scrollTop = log().scrollHeight;
  };
  new MutationObserver(follow).observe(chat, { childList: true, subtree: true, characterData: true });

  const isComposer = ({ target }) => target.matches?.("#tb-composer textarea");
  for (const kind of ["keydown", "keypress"]) {
    addEventListener(kind, (event) => {
      if (event.isComposing || event.keyCode === 229) event.stopImmediatePropagation();
    }, true);
  }
  addEventListener("input", (event) => {
    if (!isComposer(event)) return;
    event.target.dir = "auto";
    localStorage.setItem("talkback_draft", event.target.value);
  });

  const clipboard = navigator.clipboard;
  const write = clipboard?.writeText.bind(clipboard);
  if (write) clipboard.writeText = (text) => write(withoutJoiners(text));
  addEventListener("copy", (event) => {
    const text = String(getSelection());
    if (withoutJoiners(text) === text) return;
    event.clipboardData.setData("text/plain", withoutJoiners(text));
    event.preventDefault();
  });
}
