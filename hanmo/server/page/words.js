/** The page's texts in English and Chinese. */
export const WORDS = {
  en: {
    other: "中文", model: "Model", tabWrite: "Continue", tabFill: "Fill in", tabTask: "Task", tabs: "What to do",
    text: "Text to continue", textPlaceholder: "Type a beginning, then continue it (Ctrl+Enter).",
    continue: "Continue", stop: "Stop", undo: "Undo", score: "Score this text", shade: "Shade by surprise",
    settings: "Settings", candidates: "Candidates", temperature: "Temperature", topK: "Top-k", length: "Length (tokens)",
    seed: "Seed", lock: "Keep this seed", sentence: "End at a sentence",
    use: "Use", bits: "bits", bitsPerCharacter: "bits per character", probability: "probability", instead: "Alternatives",
    fillText: "Text with masks", fill: "Fill in", insert: "Insert",
    taskText: "Text for the task", predict: "Predict", nothing: "Nothing found.",
    key: "API key", keep: "Use this key", needKey: "This server asks for an API key.",
    noModel: "No model on this server serves this tab.", unreachable: "The server does not answer.",
    ends: { end: "end of text", sentence: "end of sentence", length: "length reached", chars: "length reached", context: "last position", cancelled: "stopped" },
  },
  zh: {
    other: "English", model: "模型", tabWrite: "续写", tabFill: "填空", tabTask: "任务", tabs: "功能",
    text: "要续写的文字", textPlaceholder: "写一个开头，再按 Ctrl+Enter 续写。",
    continue: "续写", stop: "停止", undo: "撤销", score: "给这段文字打分", shade: "按意外程度着色",
    settings: "设置", candidates: "候选数", temperature: "温度", topK: "Top-k", length: "长度（token）",
    seed: "随机种子", lock: "固定种子", sentence: "写到句末为止",
    use: "采用", bits: "比特", bitsPerCharacter: "比特/字", probability: "概率", instead: "其他候选",
    fillText: "带空的文字", fill: "填空", insert: "插入",
    taskText: "任务的文字", predict: "预测", nothing: "没有找到。",
    key: "API 密钥", keep: "使用此密钥", needKey: "此服务器需要 API 密钥。",
    noModel: "此服务器上没有可用于本页的模型。", unreachable: "服务器没有响应。",
    ends: { end: "全文结束", sentence: "句末", length: "已到长度", chars: "已到长度", context: "已到最后位置", cancelled: "已停止" },
  },
};
