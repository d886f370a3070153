"""Let methods compete on one stream, and take the one that is recommended.

python examples/compare_methods.py
"""

import everlearn
from everlearn.recommendation import recommendation

if __name__ == "__main__":
    stream = {"name": "banking77", "tasks": 7, "max_train_per_class": 2, "max_test_per_class": 1}
    results = everlearn.compare("simplecil,lda,klda", stream)
    for result in results:
        print(f"{result['method']:<10} final {result['final_accuracy']:.2f}  retention {result['retention']:.2f}")
    print(recommendation(results))
