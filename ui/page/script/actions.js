// Actions of a message: {name: its text, icon, shows(message, index, isLast), run(message, index), changes: the conversation}.
(() => {
  const xl = window.xianliao;
  const isReply = (message) => message.role === "assistant", isUser = (message) => message.role === "user";
  const isWhole = (message) => isReply(message) && message.seed !== undefined;
  const rate = (liked) => (message, index) => xl.trigger("like", { index, value: message.text, liked });
  const rating = (name) => (_, index) => ({ "aria-pressed": String((xl.tree.node(index) || {}).rating === name) });
  // A page that is not on this machine and not encrypted has no clipboard of its own.
  xl.copy = async (text) => {
    if (navigator.clipboard) { await navigator.clipboard.writeText(text); return; }
    const box = document.body.appendChild(xl.element("textarea", { "aria-hidden": true }));
    box.value = text;
    box.select();
    document.execCommand("copy");
    box.remove();
  };
  xl.actions = [
    {
      name: "copy", icon: "copy", shows: () => true,
      run: ({ text }) => xl.copy(text).then(() => xl.notice(xl.say("copied"))),
    },
    {
      name: "retry", icon: "retry", changes: true, shows: (message, _, isLast) => isReply(message) || isLast,
      run: (message, index) => {
        const chat = xl.chat.current(), end = isReply(message) ? index : index + 1;
        const avoid = isReply(message) ? xl.tree.texts(index) : [];
        const messages = end < chat.messages.length - 1 ? chat.messages.slice(0, end) : chat.messages;
        xl.chat.set({ ...chat, messages, avoid });
        xl.trigger("retry", {});
      },
    },
    {
      name: "another", icon: "another", shows: (message, _, isLast) => isLast && isWhole(message),
      state: () => ({ disabled: xl.chat.isOffering() }),
      run: (_, index) => {
        xl.chat.offering(true);
        xl.trigger("option_select", { index: xl.tree.ahead(index) + 1, value: "" });
      },
    },
    { name: "edit", icon: "edit", changes: true, shows: isUser, run: (_, index) => xl.chat.edit(index) },
    {
      name: "undo", icon: "undo", changes: true, run: () => xl.trigger("undo", {}),
      shows: (message, index) => isUser(message) && !xl.chat.current().messages.slice(index + 1).some(isUser),
    },
    { name: "like", icon: "like", shows: (message) => xl.given.feedback && isWhole(message), run: rate(true), state: rating("like") },
    {
      name: "dislike", icon: "dislike", shows: (message) => xl.given.feedback && isWhole(message), run: rate(false),
      state: rating("dislike"),
    },
    { name: "branch", icon: "branch", changes: true, shows: () => true, run: (_, index) => xl.chat.branch(index) },
    { name: "info", icon: "info", shows: isWhole, run: (_, index) => xl.inside.toggle(index) },
  ];
})();
