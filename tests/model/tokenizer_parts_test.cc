// The parts of the tokenizer one by one; tokenizer_test.cc tests them together.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "common/utf8.h"
#include "model/tokenizer_added.h"
#include "model/tokenizer_normalizer.h"
#include "model/tokenizer_pattern.h"
#include "model/tokenizer_regex.h"
#include "model/tokenizer_split.h"

namespace moiety {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

std::string repaired(std::string_view bytes) {
  std::string text;
  append_replacing_invalid(bytes, text);
  return text;
}

TEST(Utf8, ReplacesEachMaximalSubpart) {
  EXPECT_EQ(repaired("plain \u00e4\u4e2d\U0001F600"), "plain \u00e4\u4e2d\U0001F600");
  // Unicode 15, tables 3-8 to 3-11.
  EXPECT_EQ(repaired("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(repaired("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(repaired("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41\uFFFD\uFFFD\x42");
  EXPECT_EQ(repaired("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
}

TEST(Utf8, FindsTheUnfinishedSuffix) {
  EXPECT_EQ(unfinished_utf8_suffix(""), 0u);
  EXPECT_EQ(unfinished_utf8_suffix("a"), 0u);
  EXPECT_EQ(unfinished_utf8_suffix("\u00e4"), 0u);
  EXPECT_EQ(unfinished_utf8_suffix("a\xC3"), 1u);
  EXPECT_EQ(unfinished_utf8_suffix("a\xE2\x82"), 2u);
  EXPECT_EQ(unfinished_utf8_suffix("a\xF0\x9F\x98"), 3u);
  EXPECT_EQ(unfinished_utf8_suffix("\xED\xA0"), 0u) << "no byte completes a surrogate";
  EXPECT_EQ(unfinished_utf8_suffix("\x80\x80\x80"), 0u);
  EXPECT_EQ(unfinished_utf8_suffix("\xC0"), 0u);
}

TEST(Utf8, CodePointsComeBack) {
  for (char32_t value :
       {U'\0', U'a', U'\x7F', U'\x80', U'\x7FF', U'\x800', U'\xFFFF', U'\x10000', U'\x10FFFF'}) {
    std::string text = "x";
    append_code_point(value, text);
    EXPECT_EQ(last_code_point(text).value, value);
    EXPECT_EQ(first_code_point(std::string_view(text).substr(1)).bytes, text.size() - 1);
  }
}

std::vector<std::string> matches(std::string_view pattern, const std::string& text) {
  const auto regex = Regex::compile(pattern);
  EXPECT_TRUE(regex) << regex.error().message;
  std::vector<Regex::Span> spans;
  if (!regex) return {};
  MatchBudget budget(text.size());
  EXPECT_TRUE(regex->find_all(text, spans, budget));
  std::vector<std::string> found;
  for (const auto& span : spans) found.push_back(text.substr(span.begin, span.end - span.begin));
  return found;
}

TEST(Regex, ReadsPatternsAsOniguruma) {
  EXPECT_THAT(matches("\\s", "a\u180e\u3000b\u0085"), ElementsAre("\u3000", "\u0085"));
  EXPECT_THAT(matches("[\\S]+", "a\u180e\u3000b"), ElementsAre("a\u180e", "b"));
  EXPECT_THAT(matches("[^\\s\\p{L}]+", "a\u180e\u3000!"), ElementsAre("\u180e", "!"));
  EXPECT_THAT(matches("\\p{S}", "a\U0001FA77"), ElementsAre("\U0001FA77")) << "Unicode 15";
  EXPECT_THAT(matches("\\p{Lo}+", "a\U0002EBF0\U00016D40"), ElementsAre("\U0002EBF0"));
  EXPECT_THAT(matches("[\\p{N}]", "\U0001D2C0\U00010D40"), ElementsAre("\U0001D2C0", "\U00010D40"));
  EXPECT_THAT(matches("\\P{L}+|\\D", "a1\U0002EBF0"), ElementsAre("a", "1", "\U0002EBF0"));
  EXPECT_THAT(matches("^.|c$", "ab\nbc\nx"), ElementsAre("a", "b", "c", "x")) << "anchors of lines";
  EXPECT_THAT(matches("(?i:'s)|(t)", "'S 't'\u017f"), ElementsAre("'S", "t", "'\u017f"));
  EXPECT_THAT(matches("a*", "baac"), ElementsAre("", "aa", ""));
  EXPECT_THAT(matches("a{2}|[\\]\\-x-]", "aaa]-x"), ElementsAre("aa", "]", "-", "x"));
  EXPECT_THAT(matches("\\v|\\x{e4}|\\u4e2d", "\x0b\n\u00e4\u4e2d"),
              ElementsAre("\x0b", "\u00e4", "\u4e2d"));
  EXPECT_THAT(matches("\\s+(?!\\S)|\\s+", "a   b"), ElementsAre("  ", " "));
}

// What Oniguruma says is in tests/golden/tokenizer_variants.py's comparison, for every character.
TEST(Regex, ReadsSetsAsOniguruma) {
  EXPECT_THAT(matches("\\w+", "a_1\u00b2\u24b6-\u200d\u00e9"),
              ElementsAre("a_1\u00b2\u24b6", "\u00e9"));
  EXPECT_THAT(matches("[\\w]+", "a\u00b2b"), ElementsAre("a", "b")) << "another set in a class";
  EXPECT_THAT(matches("\\b\\w", "ab c-d"), ElementsAre("a", "c", "d"));
  EXPECT_THAT(matches("a\\B", "a ab"), ElementsAre("a"));
  EXPECT_THAT(matches("\\h+\\H", "aF9g"), ElementsAre("aF9g"));
  EXPECT_THAT(matches("\\p{Han}+|\\p{Kawi}", "\u6771a\u4eac\U00011f04"),
              ElementsAre("\u6771", "\u4eac", "\U00011f04"));
  EXPECT_THAT(matches("\\p{hiragana}|\\P{^LATIN}", "a\u3042\u30a2"), ElementsAre("a", "\u3042"));
  EXPECT_THAT(matches("\\p{Cn}", "a\u0378\u0897"), ElementsAre("\u0378"));
  EXPECT_THAT(matches("\\p{Mn}", "\u0301\U0001171e"), ElementsAre("\u0301"));
  EXPECT_THAT(matches("[a[bc]]+", "abcd"), ElementsAre("abc"));
  EXPECT_THAT(matches("[a-z&&[^aeiou]]+", "hello"), ElementsAre("h", "ll"));
  EXPECT_THAT(matches("[^a-c&&b-d[x]]", "abcdx"), ElementsAre("a", "d", "x"));
  EXPECT_THAT(matches("[^\\W_]+", "a_b-"), ElementsAre("a", "b"));
  EXPECT_THAT(matches("[^[^a]b]", "abc"), ElementsAre("a"));
  EXPECT_THAT(matches("[[:alpha:]]+|[[:^space:]]", "ab1 "), ElementsAre("ab", "1"));
  EXPECT_THAT(matches("[\\D\\d]{3}", "a1-"), ElementsAre("a1-"));
  EXPECT_THAT(matches("[[a]-z]", "a-zb"), ElementsAre("a", "-", "z"));
  EXPECT_THAT(matches("(?<=[\\W])a|[a^]", "-a^"), ElementsAre("a", "^"));
}

TEST(Regex, RefersBackToGroups) {
  EXPECT_THAT(matches("(\\w)\\1", "aabb ab"), ElementsAre("aa", "bb"));
  EXPECT_THAT(matches("(a)(b)?\\2", "aba abb"), ElementsAre("abb"))
      << "what is unset never matches";
  EXPECT_THAT(matches("(?<q>['\"]).*?\\k<q>", "a'b\"c'd\"e\""), ElementsAre("'b\"c'", "\"e\""));
  EXPECT_THAT(matches("(?<x>a)(b)(?<y>c)\\k<y>", "abcc"), ElementsAre("abcc"))
      << "beside named groups others do not count";
  EXPECT_THAT(matches("(?:(a)|\\1b)+\\k<1>", "aabab"), ElementsAre("aaba"));
  EXPECT_THAT(matches("(a)*+z|\\1", "aba"), ElementsAre()) << "as the interpreter of PCRE2 has it";
  EXPECT_THAT(matches("(?>a*c|a){2}b", "aaacb"), ElementsAre()) << "likewise";
  EXPECT_THAT(matches("(?<word>\\p{L}+)", "ab 1"), ElementsAre("ab"));
}

TEST(Regex, KeepsLineBreaksStartsAndBlocks) {
  EXPECT_THAT(matches("\\R", "a\r\n\n\r\x0b\u0085\u2029"),
              ElementsAre("\r\n", "\n", "\r", "\x0b", "\u0085", "\u2029"));
  EXPECT_THAT(matches("\\R\\n", "\r\n"), ElementsAre()) << "atomic";
  EXPECT_THAT(matches("a\\Kb|c", "ababc"), ElementsAre("b", "b", "c"));
  EXPECT_THAT(matches("\\Ga|b", "aacab"), ElementsAre("a", "a", "b"));
  EXPECT_THAT(matches("\\Ga", std::string(600, 'b') + "a"), ElementsAre())
      << "a search that goes on starts nowhere else";
  EXPECT_THAT(matches("\\p{InBasic_Latin}+|[^\\p{in greek and coptic}]", "ab\u03b1\u4e2d"),
              ElementsAre("ab", "\u4e2d"));
  EXPECT_THAT(matches("(?i:\\p{Lu}x)", "aXAx"), ElementsAre("Ax")) << "one case, as a set says";
}

// Matches are looked for from so many characters at a time.
TEST(Regex, FindsWhatIsFarAway) {
  for (std::size_t far = 250; far < 264; ++far) {
    for (const char* gap : {"b", "\u4e2d", "\U0001F600"}) {
      std::string text;
      while (text.size() < far) text += gap;
      EXPECT_THAT(matches("a|\\z", text + "a"), ElementsAre("a")) << text.size();
      EXPECT_THAT(matches("(?<=b)(?!b)|\\z", text), ElementsAre("")) << text.size();
    }
  }
}

TEST(Regex, TooManyStepsAreAnError) {
  const auto regex = Regex::compile("(?:a|aa)+[bc]");
  ASSERT_TRUE(regex);
  std::vector<Regex::Span> spans;
  MatchBudget budget(100);
  const auto found = regex->find_all(std::string(100, 'a'), spans, budget);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(found.error().message,
              HasSubstr("pattern (?:a|aa)+[bc] failed on a text of 100 bytes"));
  EXPECT_FALSE(regex->replace_all(std::string(100, 'a'), "", 1000, budget));
}

// Each attempt is cheap, all together would take minutes: those that match, and those that do not.
TEST(Regex, ATextHasABudgetForAllOfItsMatches) {
  for (const char* pattern : {"a(?=.*b)", "\\s+$", "a(?=.*[cd])"}) {
    const auto regex = Regex::compile(pattern);
    ASSERT_TRUE(regex);
    const std::string text =
        pattern[0] == 'a' ? std::string(500'000, 'a') + "b" : std::string(500'000, ' ') + "1";
    std::vector<Regex::Span> spans;
    MatchBudget budget(100);
    const auto found = regex->find_all(text, spans, budget);
    ASSERT_FALSE(found) << pattern;
    EXPECT_EQ(found.error().code, ErrorCode::kResourceExhausted);
    EXPECT_THAT(found.error().message, HasSubstr("failed on a text of 500001 bytes (too slow)"));
    EXPECT_FALSE(regex->find_all(text, spans, budget)) << "it is spent";
  }
}

TEST(Regex, ReplacingStopsAtTheMostBytes) {
  const auto regex = Regex::compile("a");
  ASSERT_TRUE(regex);
  MatchBudget budget(100);
  EXPECT_EQ(*regex->replace_all("xaay", "bb", 6, budget), "xbbbby");
  for (const char* text : {"xaayz", "xaaaz", "xxaa___"}) {
    const auto longer = regex->replace_all(text, "bb", 6, budget);
    ASSERT_FALSE(longer) << text;
    EXPECT_EQ(longer.error().code, ErrorCode::kResourceExhausted);
    EXPECT_THAT(longer.error().message, HasSubstr("more than 6 bytes"));
  }
}

TEST(Regex, ErrorsShowTheBeginningOfLongPatternsCutBetweenCharacters) {
  // The 200th byte is the first of a character's three.
  std::string shown = "(?:a|aa)+[bc]|xx";
  while (shown.size() < 199) shown += "\u4e2d";
  const auto regex = Regex::compile(shown + "\u4e2d\u4e2d");
  ASSERT_TRUE(regex) << regex.error().message;
  std::vector<Regex::Span> spans;
  MatchBudget budget(100);
  const auto found = regex->find_all(std::string(100, 'a'), spans, budget);
  ASSERT_FALSE(found);
  EXPECT_THAT(found.error().message, HasSubstr("pattern " + shown + "... failed"));
}

TEST(Regex, ErrorsShowThePatternAsItWasWritten) {
  const auto refused = Regex::compile("(\\p{Lu}\\s");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refused.error().message,
            "not a regular expression (missing closing parenthesis): (\\p{Lu}\\s");
  const auto long_one = Regex::compile("(" + std::string(1000, 'x'));
  ASSERT_FALSE(long_one);
  EXPECT_THAT(long_one.error().message, HasSubstr("): (" + std::string(199, 'x') + "..."));
}

TEST(Regex, LongTextsMatch) {
  const std::string text(1 << 20, 'a');
  EXPECT_THAT(matches("(?:a|b)*", text), ElementsAre(text));
  EXPECT_THAT(matches("(?:a|b)*c|a+", text), ElementsAre(text));
}

// As Oniguruma's Ruby syntax has them; PCRE2 reads {}+ as possessive and {2}? as lazy.
TEST(Regex, QuantifiersAfterIntervals) {
  const std::tuple<std::string_view, std::string_view, std::vector<std::string_view>> cases[] = {
      {"1{1,3}+1", "111111", {"111111"}},
      {"1{2}+", "11111", {"1111"}},
      {"1{2}?2", "112 2", {"112", "2"}},
      {"1{1,3}?", "1112", {"1", "1", "1"}},
      {"1{2,}?2", "1112", {"1112"}},
      {"1{1,2}??2", "112 2", {"112", "2"}},
      {"1{1,2}?*2", "11112", {"11112"}},
      {"1{2}{2}", "11111", {"1111"}},
      {"1{1,3}+?", "11111", {"111", "11"}},
      {"1{1,3}++1", "11111", {}},
      {"(?:1|a(2)){2}+", "1a21a21", {"1a21a2"}},
      {"0(1[a]{2}){1,2}+x", "01aa1aa1aax", {"01aa1aa1aax"}},
      {"0\u4e2d{2}+", "0\u4e2d\u4e2d\u4e2d\u4e2d\u4e2d", {"0\u4e2d\u4e2d\u4e2d\u4e2d"}},
      {"0\\p{L}{2}+", "0abcde", {"0abcd"}},
  };
  for (const auto& [pattern, text, expected] : cases) {
    EXPECT_THAT(matches(pattern, std::string(text)), ElementsAreArray(expected)) << pattern;
  }
  std::string many = "a";
  for (int i = 0; i < 300; ++i) many += "{1}";
  const auto translated = translate_pattern(many);
  ASSERT_FALSE(translated);
  EXPECT_THAT(translated.error().message, HasSubstr("a quantifier after so many {}"));
}

TEST(Regex, RefusesWhatItWouldReadDifferently) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\\X", "\\X at byte 1"},
      {"a(?:\\Kb)+", "\\K in a group at byte 4"},
      {"\\1(a)", "\\1, which is not after its group, at byte 0"},
      {"(a\\1)", "\\1, which is not after its group, at byte 2"},
      {"(a)\\10", "\\10, which is not after its group,"},
      {"(?<x>a)(b)\\2", "\\2, which is not after its group,"},
      {"(?<x>a)\\k<y>", "\\k<y>, which is not after its group,"},
      {"(a)\\k<-1>", "this form of a back reference"},
      {"(?<x>a)(?<x>b)", "a second group named x"},
      {"(?<x", "this name of a group"},
      {"(?i)(a)\\1", "a back reference regardless of case"},
      {"\\p{Hann}", "\\p{Hann} at byte 0"},
      {"\\p{InNoBlock}", "\\p{InNoBlock}"},
      {"[a[bc]", "a class without ]"},
      {"[[:letter:]]", "[: that is no known [:name:]"},
      {"[a&&]", "&& before nothing"},
      {"[&&b]", "&& after nothing"},
      {"[\\w-z]", "a range that starts with a set"},
      {"(?i:[a[b]])", "a set made of others, regardless of case"},
      {"(?i:[\\p{Greek}])", "\\p{Greek} regardless of case"},
      {"(?i:[\\p{M}])", "\\p{M} regardless of case"},
      {"(?i:[\\S])", "\\S in a class, regardless of case,"},
      {"(?i:[\\p{L}])", "\\p{L} in a class, regardless of case,"},
      {"[a-\\s]", "a range that ends in a set"},
      {"[]a]", "an empty class"},
      {"[a", "a class without ]"},
      {"a(?i)b", "(?i)"},
      {"(?m:.)", "(?m:"},
      {"(*UTF)a", "(*"},
      {"a{,3}", "{ that is not"},
      {"(?i:ss)", "\"ss\" regardless of case"},
      {"\\xff", "this form of a character code"},
      {"a\\", "\\ at the end"},
  };
  for (const auto& [pattern, message] : cases) {
    const auto translated = translate_pattern(pattern);
    ASSERT_FALSE(translated) << pattern;
    EXPECT_THAT(translated.error().message, HasSubstr(message)) << pattern;
  }
  EXPECT_FALSE(Regex::compile("(a"));
  EXPECT_FALSE(Regex::compile("a)"));
  EXPECT_FALSE(Regex::compile("+"));
}

std::vector<std::string> pieces(std::string_view pattern,
                                SplitBehavior behavior,
                                bool invert,
                                std::string_view text) {
  PreTokenizer pre_tokenizer;
  pre_tokenizer.add_split(*Regex::literal(pattern), behavior, invert);
  PreTokenizer::Scratch scratch;
  MatchBudget budget(text.size());
  EXPECT_TRUE(pre_tokenizer.apply(text, true, scratch, budget));
  return {scratch.result().begin(), scratch.result().end()};
}

// The examples of PyPI tokenizers' documentation of SplitDelimiterBehavior.
TEST(PreTokenizer, Behaviors) {
  const std::string_view text = "the-final--countdown";
  EXPECT_THAT(pieces("-", SplitBehavior::kRemoved, false, text),
              ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(pieces("-", SplitBehavior::kIsolated, false, text),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(pieces("-", SplitBehavior::kMergedWithPrevious, false, text),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(pieces("-", SplitBehavior::kMergedWithNext, false, text),
              ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(pieces("-", SplitBehavior::kContiguous, false, text),
              ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(pieces("-", SplitBehavior::kRemoved, true, text), ElementsAre("-", "-", "-"));
  EXPECT_THAT(pieces("-", SplitBehavior::kRemoved, false, "-"), ElementsAre());
  EXPECT_THAT(pieces("-", SplitBehavior::kIsolated, false, ""), ElementsAre());
}

TEST(PreTokenizer, PrefixSpaceGoesBeforeEveryPiece) {
  PreTokenizer pre_tokenizer;
  pre_tokenizer.add_split(*Regex::compile("\\s"), SplitBehavior::kMergedWithNext, false);
  pre_tokenizer.add_prefix_space();
  PreTokenizer::Scratch scratch;
  MatchBudget budget(100);
  ASSERT_TRUE(pre_tokenizer.apply("a b\tc", true, scratch, budget));
  EXPECT_THAT(scratch.result(), ElementsAre(" a", " b", " \tc"));
}

std::vector<std::string> pieces_of(const PreTokenizer& pre_tokenizer, std::string_view text) {
  PreTokenizer::Scratch scratch;
  MatchBudget budget(text.size());
  EXPECT_TRUE(pre_tokenizer.apply(text, true, scratch, budget));
  return {scratch.result().begin(), scratch.result().end()};
}

TEST(PreTokenizer, CutsByCharacters) {
  PreTokenizer words;
  words.add_words();
  EXPECT_THAT(pieces_of(words, " it's_a  b!?"), ElementsAre("it", "'", "s_a", "b", "!?"));
  PreTokenizer scripts;
  scripts.add_scripts();
  EXPECT_THAT(pieces_of(scripts, " a1 b\u30ab\u6f22"), ElementsAre("a", "1 ", "b", "\u30ab\u6f22"))
      << "a space has any script, kana count as Han";
  PreTokenizer fixed;
  fixed.add_fixed_length(2);
  EXPECT_THAT(pieces_of(fixed, "a\u00e4bcd"), ElementsAre("a\u00e4", "bc", "d"));
  PreTokenizer spelled;
  spelled.add_byte_level();
  spelled.add_split(*Regex::literal("\u0120"), SplitBehavior::kMergedWithNext, false);
  EXPECT_THAT(pieces_of(spelled, "a b"), ElementsAre("a", "\u0120b"));
  EXPECT_FALSE(spelled.remove_last_byte_level());
  spelled.add_byte_level();
  EXPECT_TRUE(spelled.remove_last_byte_level());
}

TEST(Normalizer, RewritesCharacters) {
  const auto rewritten = [](Normalizer::Rewrite rewrite, std::string_view text) {
    Normalizer normalizer;
    normalizer.add_rewrite(rewrite);
    return *normalizer.apply(text);
  };
  EXPECT_EQ(rewritten(Normalizer::Rewrite::kByteLevel, "a \u00e4"), "a\u0120\u00c3\u00a4");
  EXPECT_EQ(rewritten(Normalizer::Rewrite::kStripAccents, "e\u0301\u00e9"), "e\u00e9");
  EXPECT_EQ(rewritten(Normalizer::Rewrite::kNmt, "a\x01\u200b\tb"), "a  b");
  EXPECT_EQ(rewritten(Normalizer::Rewrite::kBertClean, "a\x01\u00a0\ufffdb"), "a b");
  EXPECT_EQ(rewritten(Normalizer::Rewrite::kBertChinese, "a\u4e2db"), "a \u4e2d b");
  EXPECT_EQ(rewritten(Normalizer::Rewrite::kBertAccents, "e\u0301"), "e");
  Normalizer clean;
  clean.add_rewrite(Normalizer::Rewrite::kBertClean);
  bool at_start = true;
  MatchBudget budget(100);
  EXPECT_EQ(*clean.apply("\x01"
                         "a",
                         at_start, budget),
            "a");
  EXPECT_FALSE(at_start);
}

std::vector<std::string> added_pieces(const std::vector<AddedToken>& tokens,
                                      std::string_view text) {
  AddedTokenMatcher matcher;
  for (const AddedToken& token : tokens) EXPECT_TRUE(matcher.add(token, token.content));
  std::vector<std::string> shown;
  for (const auto& piece : matcher.split(text)) {
    shown.push_back(piece.id < 0 ? std::string(piece.text) : fmt::format("#{}", piece.id));
  }
  return shown;
}

TEST(AddedTokenMatcher, LeftmostThenLongest) {
  const std::vector<AddedToken> tokens = {
      {.id = 1, .content = "<a>"}, {.id = 2, .content = "<a><b>"}, {.id = 3, .content = "b"}};
  EXPECT_THAT(added_pieces(tokens, "x<a><b>y<a><"), ElementsAre("x", "#2", "y", "#1", "<"));
  EXPECT_THAT(added_pieces(tokens, "<a>b"), ElementsAre("#1", "#3"));
  EXPECT_THAT(added_pieces(tokens, ""), ElementsAre());
  EXPECT_THAT(added_pieces({}, "text"), ElementsAre("text"));
}

TEST(AddedTokenMatcher, Flags) {
  const std::vector<AddedToken> word = {{.id = 1, .content = "gate", .single_word = true}};
  EXPECT_THAT(added_pieces(word, "gate gates agate (gate)"),
              ElementsAre("#1", " gates agate (", "#1", ")"));
  EXPECT_THAT(added_pieces(word, "\u00e4gate"), ElementsAre("\u00e4gate"));
  const std::vector<AddedToken> strip = {{.id = 1, .content = "<l>", .lstrip = true},
                                         {.id = 2, .content = "<r>", .rstrip = true}};
  EXPECT_THAT(added_pieces(strip, "a \u3000<l> b <r>\n c"),
              ElementsAre("a", "#1", " b ", "#2", "c"));
  EXPECT_THAT(added_pieces(strip, "<r> <l>"), ElementsAre("#2", "#1"));
}

TEST(AddedTokenMatcher, RefusesOneTextForTwoTokens) {
  AddedTokenMatcher matcher;
  EXPECT_TRUE(matcher.add({.id = 1, .content = "a"}, "a"));
  EXPECT_FALSE(matcher.add({.id = 2, .content = "A"}, "a"));
}

}  // namespace
}  // namespace moiety
