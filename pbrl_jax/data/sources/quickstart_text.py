"""The sentences of the quickstart task, in eight languages; plain data, our own wording.

No native speaker has reviewed them: they are good enough to show a mechanism and never a benchmark. The rules that
keep them grammatical without a grammar engine:

* a name is repeated instead of a pronoun, so no language asks for a gender;
* no count is 1, 21, 31, ... (agreement in es and de);
* the Swahili nouns are of classes 9 and 10 (and `pakiti`), where numerals take no prefix;
* zh and th use the classifier of each noun, zh says 两 for two before it; bn puts -টি behind every count;
* German wording avoids the dative plural; the Spanish "how many" agrees with the noun ({H});
* zh and th write no space between number word and classifier, but one on each side of digits.

Slots: {N} name, {I} item, {C} classifier, {H} "how many" (es), {a} {b} {c} operands, {e1} {e2} equations.
`number_words.json` holds the number words 0 to 99, cut from lists derived from the Unicode CLDR rule-based number
formats (Unicode License v3) and, for bn, indic-numtowords (MIT); nine bn words were changed to the modern spelling.
"""

LANGUAGES = ("en", "es", "de", "sw", "id", "zh", "th", "bn")

_LATIN_NAMES = ("Anna", "Ali", "Maria", "Juma", "Lina", "Sara")
NAMES = {
    **dict.fromkeys(("en", "es", "de", "sw", "id"), _LATIN_NAMES),
    "zh": ("安娜", "阿里", "玛丽亚", "朱马", "丽娜", "萨拉"),
    "th": ("แอนนา", "อาลี", "มาเรีย", "จูมา", "ลีน่า", "ซาร่า"),
    "bn": ("আন্না", "আলী", "মারিয়া", "জুমা", "লীনা", "সারা"),
}

ITEMS = {
    "en": ("cards", "pencils", "bananas", "bottles", "plates", "pictures", "keys", "lamps"),
    "es": ("tarjetas", "lápices", "plátanos", "botellas", "platos", "fotos", "llaves", "lámparas"),
    "de": ("Karten", "Bleistifte", "Bananen", "Flaschen", "Teller", "Bilder", "Schlüssel", "Lampen"),
    "sw": ("kadi", "penseli", "ndizi", "chupa", "sahani", "picha", "funguo", "taa"),
    "id": ("kartu", "pensil", "pisang", "botol", "piring", "foto", "kunci", "lampu"),
    "zh": ("卡片", "铅笔", "香蕉", "瓶子", "盘子", "照片", "钥匙", "灯"),
    "th": ("การ์ด", "ดินสอ", "กล้วย", "ขวด", "จาน", "รูปภาพ", "กุญแจ", "โคมไฟ"),
    "bn": ("কার্ড", "পেন্সিল", "কলা", "বোতল", "প্লেট", "ছবি", "চাবি", "বাতি"),
}

CLASSIFIERS = {
    "zh": ("张", "支", "根", "个", "个", "张", "把", "盏"),
    "th": ("ใบ", "แท่ง", "ลูก", "ใบ", "ใบ", "รูป", "ดอก", "ดวง"),
}

HOW_MANY = {
    "es": ("Cuántas", "Cuántos", "Cuántos", "Cuántas", "Cuántos", "Cuántas", "Cuántas", "Cuántas"),
}

FAMILIES = ("add", "sub", "mul", "div", "addsub", "muladd")

QUESTIONS = {
    "add": {
        "en": "{N} has {a} {I}. {N} buys {b} more. How many {I} does {N} have now?",
        "es": "{N} tiene {a} {I}. {N} compra {b} más. ¿{H} {I} tiene {N} ahora?",
        "de": "{N} hat {a} {I}. {N} kauft {b} weitere. Wie viele {I} hat {N} jetzt?",
        "sw": "{N} ana {I} {a}. {N} ananunua {b} zaidi. {N} ana {I} ngapi sasa?",
        "id": "{N} punya {a} {I}. {N} membeli {b} lagi. Berapa {I} yang dimiliki {N} sekarang?",
        "zh": "{N}有{a}{C}{I}。{N}又买了{b}{C}。{N}现在有多少{C}{I}？",
        "th": "{N}มี{I}{a}{C} {N}ซื้อเพิ่มอีก{b}{C} ตอนนี้{N}มี{I}กี่{C}",
        "bn": "{N}র কাছে {a}টি {I} আছে। {N} আরও {b}টি কেনে। এখন {N}র কাছে কয়টি {I} আছে?",
    },
    "sub": {
        "en": "{N} has {a} {I}. {N} loses {b} of them. How many {I} are left?",
        "es": "{N} tiene {a} {I}. {N} pierde {b}. ¿{H} {I} quedan?",
        "de": "{N} hat {a} {I}. {N} verliert {b} davon. Wie viele {I} bleiben übrig?",
        "sw": "{N} ana {I} {a}. {N} anapoteza {b}. Zimebaki {I} ngapi?",
        "id": "{N} punya {a} {I}. {N} kehilangan {b}. Berapa {I} yang tersisa?",
        "zh": "{N}有{a}{C}{I}。{N}丢了{b}{C}。还剩多少{C}{I}？",
        "th": "{N}มี{I}{a}{C} {N}ทำหายไป{b}{C} เหลือ{I}กี่{C}",
        "bn": "{N}র কাছে {a}টি {I} আছে। {N} {b}টি হারিয়ে ফেলে। কয়টি {I} বাকি আছে?",
    },
    "mul": {
        "en": "{N} has {a} packets. Each packet holds {b} {I}. How many {I} are there in total?",
        "es": "{N} tiene {a} paquetes. Cada paquete contiene {b} {I}. ¿{H} {I} hay en total?",
        "de": "{N} hat {a} Pakete. Jedes Paket enthält {b} {I}. Wie viele {I} sind es insgesamt?",
        "sw": "{N} ana pakiti {a}. Kila pakiti ina {I} {b}. Kuna {I} ngapi kwa jumla?",
        "id": "{N} punya {a} paket. Setiap paket berisi {b} {I}. Berapa jumlah {I} seluruhnya?",
        "zh": "{N}有{a}包{I}。每包有{b}{C}。一共有多少{C}{I}？",
        "th": "{N}มี{I}{a}ห่อ แต่ละห่อมี{b}{C} มี{I}ทั้งหมดกี่{C}",
        "bn": "{N}র কাছে {a}টি প্যাকেট আছে। প্রতিটি প্যাকেটে {b}টি {I} আছে। মোট কয়টি {I} আছে?",
    },
    "div": {
        "en": "{N} divides {a} {I} equally among {b} packets. How many {I} are in each packet?",
        "es": "{N} reparte {a} {I} por igual en {b} paquetes. ¿{H} {I} hay en cada paquete?",
        "de": "{N} verteilt {a} {I} gleichmäßig auf {b} Pakete. Wie viele {I} sind in jedem Paket?",
        "sw": "{N} anagawa {I} {a} sawasawa katika pakiti {b}. Kila pakiti ina {I} ngapi?",
        "id": "{N} membagi {a} {I} sama rata ke dalam {b} paket. Berapa {I} yang ada di setiap paket?",
        "zh": "{N}把{a}{C}{I}平均分成{b}包。每包有多少{C}{I}？",
        "th": "{N}แบ่ง{I}{a}{C}ใส่{b}ห่อเท่าๆ กัน แต่ละห่อมี{I}กี่{C}",
        "bn": "{N} {a}টি {I} সমানভাবে {b}টি প্যাকেটে রাখে। প্রতিটি প্যাকেটে কয়টি {I} আছে?",
    },
    "addsub": {
        "en": "{N} has {a} {I}. {N} buys {b} more and then loses {c}. How many {I} does {N} have now?",
        "es": "{N} tiene {a} {I}. {N} compra {b} más y luego pierde {c}. ¿{H} {I} tiene {N} ahora?",
        "de": "{N} hat {a} {I}. {N} kauft {b} weitere und verliert dann {c}. Wie viele {I} hat {N} jetzt?",
        "sw": "{N} ana {I} {a}. {N} ananunua {b} zaidi kisha anapoteza {c}. {N} ana {I} ngapi sasa?",
        "id": "{N} punya {a} {I}. {N} membeli {b} lagi lalu kehilangan {c}. Berapa {I} yang dimiliki {N} sekarang?",
        "zh": "{N}有{a}{C}{I}。{N}又买了{b}{C}，然后丢了{c}{C}。{N}现在有多少{C}{I}？",
        "th": "{N}มี{I}{a}{C} {N}ซื้อเพิ่มอีก{b}{C} แล้วทำหายไป{c}{C} ตอนนี้{N}มี{I}กี่{C}",
        "bn": "{N}র কাছে {a}টি {I} আছে। {N} আরও {b}টি কেনে এবং তারপর {c}টি হারিয়ে ফেলে। এখন {N}র কাছে কয়টি {I} আছে?",
    },
    "muladd": {
        "en": "{N} has {a} packets with {b} {I} each and {c} more {I}. How many {I} are there in total?",
        "es": "{N} tiene {a} paquetes con {b} {I} cada uno y {c} {I} más. ¿{H} {I} hay en total?",
        "de": "{N} hat {a} Pakete. In jedem Paket sind {b} {I}. Dazu kommen {c} weitere {I}. "
        "Wie viele {I} sind es insgesamt?",
        "sw": "{N} ana pakiti {a} zenye {I} {b} kila moja na {I} {c} zaidi. Kuna {I} ngapi kwa jumla?",
        "id": "{N} punya {a} paket yang masing-masing berisi {b} {I} dan {c} {I} lagi. Berapa jumlah {I} seluruhnya?",
        "zh": "{N}有{a}包{I}，每包{b}{C}，另外还有{c}{C}{I}。一共有多少{C}{I}？",
        "th": "{N}มี{I}{a}ห่อ ห่อละ{b}{C} และมี{I}อีก{c}{C} มี{I}ทั้งหมดกี่{C}",
        "bn": "{N}র কাছে {a}টি প্যাকেট আছে, প্রতিটিতে {b}টি {I}, এবং আরও {c}টি {I} আছে। মোট কয়টি {I} আছে?",
    },
}

STEPS = {
    "add": {
        "en": "{N} starts with {a} and buys {b}.",
        "es": "{N} empieza con {a} y compra {b}.",
        "de": "{N} beginnt mit {a} und kauft {b}.",
        "sw": "{N} anaanza na {a} na kununua {b}.",
        "id": "{N} mulai dengan {a} dan membeli {b}.",
        "zh": "{N}原来有 {a} {C}，又买了 {b} {C}。",
        "th": "{N}เริ่มต้นด้วย {a} {C} และซื้อเพิ่ม {b} {C}",
        "bn": "{N}র কাছে {a}টি আছে এবং {N} {b}টি কেনে।",
    },
    "sub": {
        "en": "{N} starts with {a} and loses {b}.",
        "es": "{N} empieza con {a} y pierde {b}.",
        "de": "{N} beginnt mit {a} und verliert {b}.",
        "sw": "{N} anaanza na {a} na kupoteza {b}.",
        "id": "{N} mulai dengan {a} dan kehilangan {b}.",
        "zh": "{N}原来有 {a} {C}，丢了 {b} {C}。",
        "th": "{N}เริ่มต้นด้วย {a} {C} และทำหาย {b} {C}",
        "bn": "{N}র কাছে {a}টি আছে এবং {N} {b}টি হারায়।",
    },
    "mul": {
        "en": "There are {a} packets with {b} each.",
        "es": "Hay {a} paquetes con {b} cada uno.",
        "de": "Es gibt {a} Pakete mit je {b}.",
        "sw": "Kuna pakiti {a} zenye {b} kila moja.",
        "id": "Ada {a} paket yang masing-masing berisi {b}.",
        "zh": "有 {a} 包，每包 {b} {C}。",
        "th": "มี {a} ห่อ ห่อละ {b} {C}",
        "bn": "{a}টি প্যাকেট আছে, প্রতিটিতে {b}টি।",
    },
    "div": {
        "en": "{N} divides {a} among {b} packets.",
        "es": "{N} reparte {a} en {b} paquetes.",
        "de": "{N} verteilt {a} auf {b} Pakete.",
        "sw": "{N} anagawa {a} katika pakiti {b}.",
        "id": "{N} membagi {a} ke dalam {b} paket.",
        "zh": "{N}把 {a} {C}分成 {b} 包。",
        "th": "{N}แบ่ง {a} {C}ใส่ {b} ห่อ",
        "bn": "{N} {a}টি {I} {b}টি প্যাকেটে ভাগ করে।",
    },
}
"""First sentence of a one-step response; the equation follows it."""

TWO_STEPS = {
    "en": "First {e1}. Then {e2}.",
    "es": "Primero {e1}. Luego {e2}.",
    "de": "Zuerst {e1}. Dann {e2}.",
    "sw": "Kwanza {e1}. Kisha {e2}.",
    "id": "Pertama {e1}. Lalu {e2}.",
    "zh": "首先 {e1}。然后 {e2}。",
    "th": "ก่อนอื่น {e1} จากนั้น {e2}",
    "bn": "প্রথমে {e1}। তারপর {e2}।",
}

FULL_STOP = {**dict.fromkeys(("en", "es", "de", "sw", "id"), "."), "zh": "。", "th": "", "bn": "।"}

THAI_NUMBER_PARTS = ("หนึ่ง", "สอง", "สาม", "สี่", "ห้า", "หก", "เจ็ด", "แปด", "เก้า", "สิบ", "เอ็ด", "ยี่")
"""Kept apart by the tokenizer, as the zh numerals are: nothing separates them from their neighbours."""

BENGALI_COUNT_SUFFIX = "টি"
