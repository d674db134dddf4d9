// Runs before Gradio's own script: chooses the language, keeps the theme and the sidebar as they
// were left, and gives Gradio's elements the names, roles and keys that they lack.
(() => {
  // Gradio's texts follow the browser's language; ours are English, so all are.
  Object.defineProperty(navigator, "language", { get: () => "en" });
  Object.defineProperty(navigator, "languages", { get: () => ["en"] });

  // Where the browser denies storage, the page's own memory stands in until it is left.
  try {
    localStorage.length;
  } catch {
    const kept = new Map();
    const memory = {
      getItem: (key) => kept.get(key) ?? null,
      setItem: (key, value) => void kept.set(key, String(value)),
      removeItem: (key) => void kept.delete(key),
    };
    Object.defineProperty(window, "localStorage", { value: memory });
  }

  const root = document.documentElement;
  const find = (selector, within = document) => within.querySelector(selector);
  const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];
  const setOnce = (element, name, value) => {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };

  // The theme: Gradio paints by the system's preference; who has chosen keeps what they chose.
  const chosenTheme = () => localStorage.getItem("talkback_theme");
  const isDark = () => document.body.classList.contains("dark");
  const paintTheme = () => {
    if (chosenTheme() && isDark() !== (chosenTheme() === "dark"))
      document.body.classList.toggle("dark");
  };

  // The sidebar: open where there is room, unless it was closed. Gradio reads its config next.
  const isWide = () => innerWidth > 1000;
  const reserveSidebar = (open) => {
    root.dataset.sidebar = open ? "open" : "closed";
  };
  const sidebar = window.gradio_config?.components?.find((c) => c.props?.elem_id === "tb-sidebar");
  const opens = Boolean(sidebar) && isWide() && localStorage.getItem("talkback_sidebar") !== "closed";
  if (sidebar) sidebar.props.open = opens;
  reserveSidebar(opens);

  // What Gradio's elements lack.
  const repairs = {
    // The log would be read out at every word of a stream: `announce` reads the whole answer.
    "#tb-chat [role=log]": (log) => {
      setOnce(log, "aria-live", "off");
      setOnce(log, "tabindex", "0");
    },
    "#tb-chat .examples[role=list]": (examples) => {
      setOnce(examples, "role", "group");
      setOnce(examples, "aria-label", "Example questions");
    },
    "#tb-chat [data-testid=user]": (message) => nameMessage(message, "Your message"),
    "#tb-chat [data-testid=bot]": (message) => nameMessage(message, "The bot's message"),
    ".message textarea": (textarea) => setOnce(textarea, "aria-label", "The text to edit"),
    ".submit-button": (button) => setOnce(button, "aria-label", "Send message"),
    ".stop-button": (button) => setOnce(button, "aria-label", "Stop"),
    ".prose input[type=checkbox]": (box) =>
      setOnce(box, "aria-label", box.parentElement.textContent.trim() || "Item"),
    ".prose th": (cell) => {
      if (!cell.textContent.trim()) setOnce(cell, "role", "cell");
    },
    ".prose :is(pre, table), #tb-items, .tb-answer": (box) => {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight)
        setOnce(box, "tabindex", "0");
    },
    // Gradio makes a button of a toast that holds a button, with no task of its own.
    ".toast-header[role=button]": (header) => {
      header.removeAttribute("role");
      header.removeAttribute("tabindex");
    },
    // As it does of a thought's title, which holds the button that unfolds it.
    ".thought-group [role=button]": (title) => {
      title.removeAttribute("role");
      title.removeAttribute("tabindex");
    },
    ".thought-group .arrow button": (button) =>
      setOnce(button, "aria-label", "Show or hide the thought"),
    "#tb-chat .message": nestHeadings,
    "#tb-chat .message-buttons": orderThumbs,
  };

  function nameMessage(message, name) {
    setOnce(message, "role", "group");
    setOnce(message, "aria-label", name);
  }

  // An answer may begin with any heading, a page's outline must not skip a level.
  function nestHeadings(message) {
    let level = 1;
    for (const heading of findAll(":is(h1, h2, h3, h4, h5, h6)", message)) {
      level = Math.min(Number(heading.tagName[1]) + 1, level + 1);
      setOnce(heading, "aria-level", String(level));
    }
  }

  // Gradio puts the thumb down first; both are told by their picture, whatever their titles say.
  function orderThumbs(buttons) {
    const thumbs = findAll('button:has(svg[viewBox="0 0 12 12"])', buttons);
    if (thumbs.length !== 2 || buttons.dataset.ordered) return;
    thumbs[1].after(thumbs[0]);
    buttons.dataset.ordered = "yes";
  }

  const repair = () => {
    for (const [selector, mend] of Object.entries(repairs)) findAll(selector).forEach(mend);
    announce();
    followThumb();
  };

  // Screen readers hear an answer once, when it is whole.
  let streaming = false;
  const announce = () => {
    const busy = Boolean(find("#tb-composer .stop-button"));
    if (streaming && !busy) liveRegion().textContent = newestAnswer();
    streaming = busy;
  };
  const newestAnswer = () => {
    const rows = findAll("#tb-chat .message-row");
    const question = rows.findLastIndex((row) => row.matches(".user-row"));
    const spoken = rows.slice(question + 1).filter((row) => !find(".thought-group", row));
    return spoken.map((row) => row.textContent.trim()).join("\n");
  };
  const liveRegion = () => {
    const existing = find("#tb-announcement");
    if (existing) return existing;
    const region = document.createElement("div");
    region.id = "tb-announcement";
    region.className = "sr-only";
    region.setAttribute("role", "status");
    document.body.append(region);
    return region;
  };

  // The card that asks for reasons stands beside the thumb that opened it.
  let thumb = null;
  const followThumb = () => {
    const card = find("#tb-rated");
    if (!card || !thumb?.isConnected) return;
    const { top, bottom } = thumb.getBoundingClientRect();
    // To the right, where it covers no answer's buttons; below where there is no room.
    const buttons = findAll("#tb-chat .bot-row + .message-buttons button");
    const right = Math.max(...buttons.map((button) => button.getBoundingClientRect().right));
    const beside = right + 12 + card.offsetWidth < innerWidth - 16;
    const x = beside ? right + 12 : Math.max(16, innerWidth - card.offsetWidth - 16);
    const y = Math.max(8, Math.min(beside ? top : bottom + 8, innerHeight - card.offsetHeight - 8));
    const position = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
    if (card.style.transform !== position) card.style.transform = position;
  };

  const press = (textarea, which) => {
    const buttons = textarea.closest(".message-row").nextElementSibling;
    findAll("button", buttons).at(which)?.click();
  };

  addEventListener("click", (event) => {
    if (event.target.closest("#tb-theme")) {
      localStorage.setItem("talkback_theme", isDark() ? "light" : "dark");
      paintTheme();
    }
    if (event.target.closest("#tb-sidebar .toggle-button") && isWide()) {
      reserveSidebar(root.dataset.sidebar === "closed");
      localStorage.setItem("talkback_sidebar", root.dataset.sidebar);
    }
    const pressed = event.target.closest('#tb-chat button:has(svg[viewBox="0 0 12 12"])');
    if (pressed) thumb = pressed;
  }, true); // before Gradio changes what was pressed
  addEventListener("keydown", (event) => {
    const textarea = event.target.closest?.("#tb-chat .message textarea");
    if (!textarea) return;
    if (event.key === "Escape") press(textarea, -1);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) press(textarea, 0);
  });
  addEventListener("scroll", followThumb, true);
  addEventListener("resize", () => {
    reserveSidebar(isWide() && Boolean(find("#tb-sidebar.open")));
    followThumb();
  });

  const begin = () => {
    paintTheme();
    new MutationObserver(paintTheme).observe(document.body, {
      attributes: true,
      attributeFilter: ["class"],
    });
    let asked = false;
    new MutationObserver(() => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        repair();
      });
    }).observe(document.body, { childList: true, subtree: true });
    liveRegion();
  };
  document.body ? begin() : addEventListener("DOMContentLoaded", begin);
})();
