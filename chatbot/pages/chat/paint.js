// Paints a view that has arrived (paint.py): `view` is the newest one as JSON, `text` is "number
// thought RS words" of the answer that streams (RS: U+001E). Returns a change for each of
// ChatPainter's components; a hole leaves one as it is. Both arrive again whenever either changes,
// so nothing is done twice.
(view, text) => {
  const page = (window.talkback ??= {
    number: 0, bubbles: [], painted: new Set(), shows: [], free: Promise.resolve(),
  });
  page.heard = Date.now();

  const toMessage = (bubble) => {
    const { role, text, id, title, status } = bubble;
    const metadata = title ? { title, status: status ?? "done" } : id ? { id } : null;
    return (bubble.message ??= { role, metadata, content: [{ type: "text", text }], options: null });
  };
  const keptBefore = ({ after }) => {
    if (after === null) return [];
    const index = page.bubbles.findIndex((bubble) => bubble.id === after);
    if (index < 0) location.reload(); // the page shows something else: have it whole
    return page.bubbles.slice(0, index + 1);
  };
  const afterThisTask = () => new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
  // Gradio mounts a part that becomes visible over several tasks, and loses a change that comes
  // meanwhile: a card would stay that the next view hides.
  const mounted = async () => {
    await afterThisTask();
    const until = Date.now() + 5000;
    while (page.shows.some((id) => !document.getElementById(id)) && Date.now() < until) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await afterThisTask();
  };

  const paint = () => {
    const changes = [];
    const next = JSON.parse(view || "{}");
    const tooLateToOpen = next.opening && page.number && next.number !== page.number;
    if (next.number >= page.number && !tooLateToOpen && !page.painted.has(next.serial)) {
      Object.assign(changes, next.changes);
      if (next.draft !== undefined) localStorage.setItem("talkback_draft", next.draft);
      else if (!page.number && changes[2]) changes[2].value = localStorage.getItem("talkback_draft") ?? "";
      page.number = next.number;
      page.painted.add(next.serial);
      page.shows = next.shows ?? [];
      if (next.bubbles) {
        page.bubbles = [...keptBefore(next), ...next.bubbles];
        const answers = page.bubbles.filter(({ role }) => role === "assistant");
        changes[0] = {
          __type__: "update",
          value: page.bubbles.map(toMessage),
          feedback_value: answers.map(({ thumb }) => thumb ?? null),
        };
        changes[1] = page.bubbles.map(({ id }) => id ?? "-").join(" ");
      }
      if (next.thumb) {
        const rated = page.bubbles.find(({ id }) => id === next.thumb[0]);
        if (rated) rated.thumb = next.thumb[1];
      }
    }

    const [number] = (text || "").split(" ", 1);
    const last = page.bubbles.at(-1);
    if (number === String(page.number) && last?.typing) {
      const [, thought, words] = /^([^\x1e]*)\x1e?([^]*)$/.exec(text.slice(number.length + 1));
      const fold = words ? { title: "Thought" } : { title: "Thinking…", status: "pending" };
      const value = [
        ...page.bubbles.slice(0, -1),
        ...(thought ? [{ role: "assistant", text: thought, ...fold }] : []),
        words ? { role: "assistant", text: words } : last,
      ].map(toMessage);
      changes[0] = changes[0] ? { ...changes[0], value } : value;
    }
    return changes;
  };

  // Gradio makes the changes step by step: those of two views must not mix.
  const changes = page.free.then(paint);
  page.free = changes.then(mounted, mounted);
  return changes;
}
