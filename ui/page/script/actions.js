// Actions of a message: {name: its text, icon, shows(message, index, isLast), run(message, index), changes: the conversation,
// state(message, index): attributes of its button, isRare: it is in a menu on a narrow screen}.
(() => {
  const xl = window.xianliao;
  const isReply = (message) => message.role === "assistant", isUser = (message) => message.role === "user";
  const isWhole = (message) => isReply(message) && message.seed !== undefined;
  const rate = (liked) => (message, index) => xl.trigger("like", { index, value: message.text, liked });
  const rating = (name) => (_, index) => ({
    "aria-pressed": String((xl.tree.node(index) || {}).rating === name), title: xl.say(name) + xl.say("rating_note"),
  });
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
      name: "retry", icon: "retry", changes: true, shows: (message, _, isLast) => (isReply(message) || isLast) && !xl.isFixed(message),
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
      state: (_, index) => {
        const isSpent = xl.tree.lastVariant(index) >= xl.given.variants;
        return { disabled: isSpent || xl.chat.isOffering(), title: isSpent ? xl.say("no_more_ways", { count: xl.given.variants }) : xl.say("another") };
      },
      run: (_, index) => {
        xl.chat.offering(true);
        xl.trigger("option_select", { index: xl.tree.ahead(index) + 1, value: "" });
      },
    },
    {
      name: "ball", icon: "ball", shows: (message, _, isLast) => isLast && isWhole(message) && xl.ball.shows(message),
      state: () => ({ "aria-expanded": String(xl.ball.isOpen()) }), run: () => xl.ball.toggle(),
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
    { name: "branch", icon: "branch", isRare: true, changes: true, shows: () => true, run: (_, index) => xl.chat.branch(index) },
    { name: "info", icon: "info", isRare: true, shows: isWhole, run: (_, index) => xl.inside.toggle(index) },
  ];
})();
