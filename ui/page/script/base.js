// Words, elements, icons and notices, for the other parts.
(() => {
  const xl = window.xianliao, { given } = xl;
  const cookie = document.cookie.split("; ").find((part) => part.startsWith(`${given.cookie}=`));
  const chosen = cookie ? cookie.split("=")[1] : "", isChosen = Object.hasOwn(given.texts, chosen);
  xl.language = isChosen ? chosen : navigator.language.startsWith("zh") ? "zh" : "en";
  document.documentElement.lang = xl.language === "zh" ? "zh-CN" : "en";
  xl.chooseLanguage = (language) => {
    document.cookie = `${given.cookie}=${language}; path=/; max-age=31536000; samesite=lax`;
    location.reload();
  };
  const words = given.texts[xl.language];
  // Returns a text of the page in its language, with values in place of {names}.
  xl.say = (name, values = {}) => words[name].replace(/{(\w+)}/g, (_, key) => String(values[key]));

  // Returns an element. Texts become text nodes.
  xl.element = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  };

  // Paths of 24 × 24 icons, drawn with strokes.
  const ICONS = {
    copy: "M9 9h11v11H9z M5 15H4V4h11v1", retry: "M4 12a8 8 0 1 0 3-6.2 M4 4v5h5", edit: "M4 20h4L19 9l-4-4L4 16z",
    ball: "M12 3a9 9 0 1 0 .010 0 M8.500 7.500a2.500 3.500 0 1 0 .010 0 M15.500 12a3 2 0 1 0 .010 0",
    another: "M3 7h4l9 10h5 M18 14l3 3-3 3 M3 17h4l3-3 M13 10l3-3h5 M18 4l3 3-3 3",
    undo: "M9 7l-5 5 5 5 M4 12h11a5 5 0 0 1 0 10h-2", like: "M7 21V10 M3 10h4l5-7c2 0 2.5 1.5 2 3l-1 4h6c1.500 0 2 1 1.700 2.200l-1.700 7c-.300 1.200-1 1.800-2 1.800H3z",
    dislike: "M17 3v11 M21 14h-4l-5 7c-2 0-2.500-1.500-2-3l1-4H5c-1.500 0-2-1-1.700-2.200l1.700-7C5.300 3.600 6 3 7 3h14z",
    info: "M12 3a9 9 0 1 0 .01 0 M12 11v6 M12 7.500v.010", branch: "M6 3v12 M18 9a9 9 0 0 1-9 9 M6 15a3 3 0 1 0 .010 0 M18 3a3 3 0 1 0 .010 0",
    previous: "M15 5l-7 7 7 7", next: "M9 5l7 7-7 7", menu: "M5 12h.010 M12 12h.010 M19 12h.010", bars: "M4 6h16 M4 12h16 M4 18h16",
    settings: "M4 7h10 M18 7h2 M16 5v4 M4 17h2 M10 17h10 M8 15v4", close: "M6 6l12 12 M18 6L6 18", plus: "M12 5v14 M5 12h14",
    sidebar: "M4 5h16v14H4z M9.500 5v14", train: "M2 9l10-5 10 5-10 5z M6 11v5c3 3 9 3 12 0v-5", search: "M11 4a7 7 0 1 0 .010 0 M16 16l5 5", down: "M12 5v14 M5 12l7 7 7-7",
  };
  Object.assign(ICONS, {  // faces of the personas
    cat: "M5 11V3l4 3h6l4-3v8a7 7 0 1 1-14 0z M9 11v.010 M15 11v.010 M11 14l1 1 1-1 M2 13h3 M19 13h3",
    scholar: "M7 9h10v4a5 5 0 1 1-10 0z M5 9h14 M8 9V4h8v5 M10 12v.010 M14 12v.010 M11 15h2 M12 18v4",
    butler: "M12 2a5 5 0 1 0 .010 0 M10 6v.010 M14 6v.010 M10.500 9h3 M12 16.500l-5-2.500v5z M12 16.500l5-2.500v5z",
    child: "M12 5a8 8 0 1 0 .010 0 M12 5c0-2 2-3 4-2 M9 12v.010 M15 12v.010 M9 16c2 2 4 2 6 0",
  });
  const SVG = "http://www.w3.org/2000/svg";
  xl.icon = (name) => {
    const svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
    for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "x-icon", "aria-hidden": "true" })) svg.setAttribute(key, value);
    path.setAttribute("d", ICONS[name]);
    svg.append(path);
    return svg;
  };
  // Returns a button with an icon; its label is read by screen readers and shown on hover.
  xl.iconButton = (icon, label, onclick, attributes = {}) => xl.element(
    "button", { type: "button", class: "x-button", "aria-label": label, title: label, onclick, ...attributes }, xl.icon(icon),
  );
  // Returns the face of the bot, or of the persona that it plays.
  xl.face = (name = xl.persona()) => xl.element("span", { class: `x-face ${name}`, "aria-hidden": "true" }, name ? xl.icon(name) : "闲");

  // Shows a short notice.
  let timer;
  xl.notice = (text) => {
    const box = document.querySelector("#x-notice")
      || document.body.appendChild(xl.element("div", { id: "x-notice", role: "status" }));
    box.textContent = text;
    box.removeAttribute("style");
    const main = document.querySelector("#main"), field = document.querySelector("#message");
    if (main && main.offsetParent) {  // above the message box, in the middle of the conversation
      const { left, width } = main.getBoundingClientRect();
      box.style.left = `${left + width / 2}px`;
      box.style.bottom = `${innerHeight - field.getBoundingClientRect().top + 12}px`;
    }
    clearTimeout(timer);
    timer = setTimeout(() => box.remove(), Math.max(4000, 150 * text.length));
  };
  // Removes the notices and failures that are shown.
  xl.clearNotices = () => document.querySelectorAll("#x-notice, .toast-close").forEach((part) => (part.id ? part.remove() : part.click()));
  xl.newId = () =>
    [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  xl.wide = () => matchMedia("(min-width: 900px)").matches;
  xl.draw = {};  // functions that draw the components of `ui.page.layout.drawn`
})();
