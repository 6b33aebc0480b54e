// Versions of messages. The conversation that the server reads is one path through a tree of all messages that were said:
// trying again or editing adds a child beside the old message, and choosing a version follows its last continuation.
(() => {
  const xl = window.xianliao;
  let tree = null, path = [], owner = "";
  const empty = () => ({ nodes: [], next: {} });  // nodes: {parent, message, line, rating}; next: last chosen child by parent
  const FIELDS = ["role", "text", "seed", "model", "temperature", "top_p", "variation", "spread", "point"];
  const isSame = (a, b) => FIELDS.every((name) => String(a[name]) === String(b[name]));
  const isTree = (value) => value && Array.isArray(value.nodes) && value.next && typeof value.next === "object"
    && value.nodes.every((node, at) => node && node.message && typeof node.message.text === "string"
      && Number.isInteger(node.parent) && node.parent < at);
  const childrenOf = () => {
    const children = new Map();
    tree.nodes.forEach(({ parent }, at) => children.set(parent, [...(children.get(parent) || []), at]));
    return children;
  };
  const child = (children, parent, message) => {
    const known = (children.get(parent) || []).find((at) => isSame(tree.nodes[at].message, message));
    if (known !== undefined) {
      tree.nodes[known].message = message;  // its signature may be newer
      return known;
    }
    tree.nodes.push({ parent, message });
    children.set(parent, [...(children.get(parent) || []), tree.nodes.length - 1]);
    return tree.nodes.length - 1;
  };
  // Adds the messages of a conversation to its tree, as the path in view.
  const grow = (chat) => {
    if (owner !== chat.id && owner !== "") tree = null;
    owner = chat.id;
    tree ??= empty();
    const children = childrenOf();
    let parent = -1;
    path = chat.messages.map((message) => {
      const at = child(children, parent, message);
      tree.next[parent] = at;
      parent = at;
      return at;
    });
    delete tree.next[parent];
  };
  const versions = (index) => {
    const node = tree && tree.nodes[path[index]];
    if (!node) return [];
    return tree.nodes.flatMap((other, at) =>
      other.parent === node.parent && other.message.role === node.message.role ? [at] : []);
  };
  xl.tree = {
    // Takes the tree of a stored conversation.
    use: (chat) => {
      tree = isTree(chat.tree) ? chat.tree : empty();
      owner = chat.id;
      grow(chat);
    },
    begin: () => { tree = null; path = []; owner = ""; },
    // Returns the tree of a conversation after its messages were added. A conversation that got a new id keeps its tree.
    grown: (chat) => {
      if (owner !== chat.id && tree && chat.messages.length && path.length
        && isSame(tree.nodes[path[0]].message, chat.messages[0])) owner = chat.id;
      grow(chat);
      return tree;
    },
    // Returns [number of the version in view, number of versions] of a message, from 1.
    versionOf: (index) => {
      const all = versions(index);
      return [all.indexOf(path[index]) + 1, all.length];
    },
    // Returns the texts of the versions of a message.
    texts: (index) => versions(index).map((at) => tree.nodes[at].message.text),
    // Returns the largest number of a variant of a reply; 0 for a reply that is not in the tree yet.
    lastVariant: (index) => {
      const { message } = xl.tree.node(index) || { message: {} }, same = ["seed", "model", "temperature", "top_p"];
      const variants = versions(index).map((at) => tree.nodes[at].message).filter((other) => same.every((name) => other[name] === message[name]));
      return Math.max(0, ...variants.map(({ variation = 0 }) => variation));
    },
    // Returns the difference between the largest number of a variant of a reply and the number of the one in view.
    ahead: (index) => xl.tree.lastVariant(index) - (tree.nodes[path[index]].message.variation || 0),
    // Returns the node of a message, which keeps what only the browser knows: the line about it and its rating.
    node: (index) => (tree && tree.nodes[path[index]]) || null,
    // Returns the messages after another version of a message was chosen.
    chosen: (index, step) => {
      const all = versions(index), at = all.indexOf(path[index]) + step;
      if (at < 0 || at >= all.length) return null;
      const way = [...path.slice(0, index), all[at]];
      const children = childrenOf();
      for (let node = all[at]; tree.next[node] !== undefined && (children.get(node) || []).includes(tree.next[node]);) {
        node = tree.next[node];
        way.push(node);
      }
      return way.map((node) => tree.nodes[node].message);
    },
    // Adds versions of the reply after a message, beside the ones that are there.
    add: (chat, index, replies) => {
      grow(chat);
      const children = childrenOf(), parent = index ? path[index - 1] : -1;
      for (const reply of replies) child(children, parent, reply);
    },
  };
})();
