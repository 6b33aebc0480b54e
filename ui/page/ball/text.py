"""Texts of the picture of replies in Chinese and English."""

from __future__ import annotations

BALL_TEXT = {
    "zh": {
        "ball": "回复地图",
        "ball_note": "虚线圆是单位球（1、2 倍标准差）：这条消息可能得到的回复都在里面，这里画的是变化最大的两个维度。"
        "每个椭圆是一条回复，两条回复重叠时有连线。拖动圆点，或者选中它再按方向键，就能看到那里的回复。",
        "ball_label": "单位球里有 {count} 条回复",
        "ball_dot": "单位球里的点",
        "ball_at": "横 {x}，纵 {y}",
        "ball_reply": "横 {x}，纵 {y}：{text}",
        "ball_wait": "正在读这些回复……",
        "ball_failed": "没有读成，请关掉再打开。",
        "ball_pull": "离中心 {centre} nat（½m²），大小 {volume} nat（½(s² − ln s² − 1)）",
        "ball_overlap": "{a} 和 {b} 重叠 {share}%",
        "ball_use": "用这条回复",
        "ball_points": "只会复述：每条回复缩成一个点，点之间的空隙解不出通顺的话。",
        "ball_trained": "训练好了：椭圆铺满单位球，球里每个点都是一条回复。",
        "ball_collapsed": "塌缩了：每条回复都占满整个球，点在哪里都一样。",
    },
    "en": {
        "ball": "Map of replies",
        "ball_note": "The dashed circles are the unit ball (1 and 2 standard deviations) that the possible replies to this"
        " message fill, in the two dimensions that vary most. Each ellipse is a reply, and a line joins replies that"
        " overlap. Drag the dot, or select it and press the arrow keys, to see the reply there.",
        "ball_label": "Unit ball with {count} replies",
        "ball_dot": "Point in the unit ball",
        "ball_at": "across {x}, up {y}",
        "ball_reply": "Across {x}, up {y}: {text}",
        "ball_wait": "Reading these replies…",
        "ball_failed": "The replies could not be read. Close the map and open it again.",
        "ball_pull": "distance from the centre {centre} nat (½m²), size {volume} nat (½(s² − ln s² − 1))",
        "ball_overlap": "{a} and {b} overlap by {share}%",
        "ball_use": "Use this reply",
        "ball_points": "Autoencoder: every reply is a point, and the gaps between them decode to nonsense.",
        "ball_trained": "Trained: ellipses fill the unit ball, and every point in it is a reply.",
        "ball_collapsed": "Collapsed: every reply is the whole ball, so the point makes no difference.",
    },
}
