"""The data sets that come with the package, or with a library that it needs anyway."""

PACKAGED = {
    "clinc150": "150 intents of short requests to an assistant, in 10 domains (English text)",
    "banking77": "77 intents of questions to a bank (English text)",
    "digits": "10 handwritten digits, 8 x 8 pixels, from scikit-learn (images)",
}
