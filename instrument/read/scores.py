"""The scores that an evaluation of a classifier records, instead of the token accuracy of a language model.

In a classifier's lines a token that is trained on, in `loss`, `eval_loss` and `supervised_tokens`, is a label: of a
row, or of a word. Imports nothing but the schema.
"""

from __future__ import annotations

from .schema import LOOP, Column, Null


def _score(en: str, ko: str) -> Column:
    return Column("", en, ko, UNDEFINED, writers=(LOOP,), type="float")


UNDEFINED = Null(
    "it is not defined: a class without rows, a constant", "정의되지 않을 때(행이 없는 클래스, 모두 같은 값)"
)
SCORES = {
    "eval_accuracy": _score("Classifiers: share of the rows (of words) whose label is right; with several labels a "
                            "row, of those whose labels all are.",
                            "분류: 레이블을 맞힌 행(단어)의 비율. 한 행에 레이블이 여럿이면 모두 맞힌 행의 비율."),
    "eval_f1": _score("Classifiers: mean of the F1 of each class (macro); of words in IOB2 the F1 of whole entities.",
                      "분류: 클래스별 F1의 평균(macro). IOB2 레이블이 붙은 단어라면 개체 전체의 F1."),
    "eval_f1_micro": _score("Classifiers: F1 over all decisions together.", "분류: 모든 판정을 합쳐서 낸 F1."),
    "eval_f1_weighted": _score("Classifiers: mean of the F1 of each class, weighted by its rows.",
                               "분류: 클래스별 F1을 행 수로 가중한 평균."),
    "eval_precision": _score("Classifiers: mean precision of the classes; of words in IOB2 that of entities.",
                             "분류: 클래스별 정밀도의 평균. IOB2라면 개체의 정밀도."),
    "eval_recall": _score("Classifiers: mean recall of the classes; of words in IOB2 that of entities.",
                          "분류: 클래스별 재현율의 평균. IOB2라면 개체의 재현율."),
    "eval_mcc": _score("Classifiers of one label: Matthews correlation, 0 for guessing.",
                       "레이블 하나인 분류: Matthews 상관계수. 아무렇게나 답하면 0입니다."),
    "eval_auroc": _score("Classifiers: area under the ROC curve, mean over the classes, each against the others.",
                         "분류: ROC 곡선 아래 넓이. 클래스마다 나머지와 견주어 평균합니다."),
    "eval_mse": _score("Regression: mean squared error.", "회귀: 평균 제곱 오차."),
    "eval_mae": _score("Regression: mean absolute error.", "회귀: 평균 절대 오차."),
    "eval_pearson": _score("Regression: Pearson's correlation.", "회귀: 피어슨 상관계수."),
    "eval_spearman": _score("Regression: Spearman's rank correlation.", "회귀: 스피어만 순위 상관계수."),
}  # fmt: skip
"""In the order in which torchmetrics' names are usual; docs/numbers.md takes its list from here."""
