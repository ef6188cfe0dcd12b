#include "model/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "common/file.h"
#include "common/utf8.h"
#include "model/byte_level.h"
#include "model/tokenizer_json.h"

namespace moiety {
namespace {

Error too_many(std::size_t most_tokens) {
  return fail(ErrorCode::kInvalidArgument,
              fmt::format("the text has more than {} tokens", most_tokens));
}

}  // namespace

struct Tokenizer::State {
  explicit State(TokenizerParts parts)
      : model(std::move(parts.model)),
        normalizer(std::move(parts.normalizer)),
        pre_tokenizer(std::move(parts.pre_tokenizer)),
        decoder(std::move(parts.decoder)),
        special_tokens(std::move(parts.special)) {}

  BpeModel model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  TokenDecoder decoder;
  SpecialTokens special_tokens;
  AddedTokenMatcher verbatim;    // added tokens that are looked for in the text as it is
  AddedTokenMatcher normalized;  // and those in normalized text
  std::unordered_map<std::string, std::int32_t> added_ids;
  std::vector<TokenDecoder::Token> tokens;        // by id
  std::vector<TokenDecoder::Token> first_tokens;  // the same at the start, if that differs
  std::vector<bool> known;                        // by id
  std::vector<bool> special;                      // by id

  struct Scratch {
    BpeModel::Scratch model;
    PreTokenizer::Scratch pieces;
    MatchBudget budget{0};  // of the text that is encoded
  };
  std::mutex mutex;
  std::vector<std::unique_ptr<Scratch>> free_scratch;  // one for each encode() that ran at a time

  bool has(std::int32_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < known.size() &&
           known[static_cast<std::size_t>(id)];
  }
  Result<void> set_token(std::int32_t id, std::string_view spelled);
  Result<void> encode_plain(std::string_view text,
                            bool at_start,
                            std::size_t most_tokens,
                            Scratch& scratch,
                            std::vector<std::int32_t>& ids) const;
  std::unique_ptr<Scratch> take_scratch();
  void give_back(std::unique_ptr<Scratch> scratch);
};

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  MOIETY_ASSIGN(const std::string json, read_regular_file(path));
  auto tokenizer = parse(json);
  if (!tokenizer) return with_context(path.string(), tokenizer.error());
  const std::filesystem::path config_path = folder / "tokenizer_config.json";
  if (!entry_exists(config_path)) return tokenizer;
  MOIETY_ASSIGN(const std::string config, read_regular_file(config_path));
  const auto applied = apply_tokenizer_config(
      config, [&](std::string_view text) { return tokenizer->token_id(text); },
      tokenizer->state_->special_tokens);
  if (!applied) return with_context(config_path.string(), applied.error());
  return tokenizer;
}

Result<Tokenizer> Tokenizer::parse(std::string_view json) {
  MOIETY_ASSIGN(TokenizerParts parts, parse_tokenizer_json(json));
  const std::vector<AddedToken> added_tokens = std::move(parts.added_tokens);
  auto state = std::make_unique<State>(std::move(parts));
  const Vocabulary& vocab = state->model.vocab();
  std::int32_t size = 0;
  for (std::size_t i = 0; i < vocab.size(); ++i) size = std::max(size, vocab[i].id + 1);
  for (const AddedToken& token : added_tokens) size = std::max(size, token.id + 1);
  state->tokens.resize(static_cast<std::size_t>(size));
  state->known.resize(static_cast<std::size_t>(size));
  state->special.resize(static_cast<std::size_t>(size));
  if (state->decoder.first_differs()) state->first_tokens.resize(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < vocab.size(); ++i) {
    MOIETY_TRY(state->set_token(vocab[i].id, vocab[i].text));
  }
  std::set<std::string_view> special;
  for (const AddedToken& token : added_tokens) {
    if (token.special) special.insert(token.content);
  }
  for (const AddedToken& token : added_tokens) {
    std::string pattern = token.content;
    if (token.normalized) {
      MOIETY_ASSIGN(pattern, state->normalizer.apply(token.content));
    }
    if (!(token.normalized ? state->normalized : state->verbatim).add(token, pattern)) {
      return fail(
          ErrorCode::kInvalidArgument,
          fmt::format("added_tokens: '{}' and another token match the same text", token.content));
    }
    MOIETY_TRY(state->set_token(token.id, pattern));
    // PyPI tokenizers look for the token as it decodes: one that normalizes to other text is kept.
    state->special[static_cast<std::size_t>(token.id)] = special.contains(pattern);
    state->added_ids.emplace(token.content, token.id);
  }
  return Tokenizer(std::move(state));
}

Result<void> Tokenizer::State::set_token(std::int32_t id, std::string_view spelled) {
  const auto index = static_cast<std::size_t>(id);
  known[index] = true;
  MOIETY_ASSIGN(tokens[index], decoder.token(spelled, false));
  if (!first_tokens.empty()) {
    MOIETY_ASSIGN(first_tokens[index], decoder.token(spelled, true));
  }
  return {};
}

std::unique_ptr<Tokenizer::State::Scratch> Tokenizer::State::take_scratch() {
  const std::lock_guard lock(mutex);
  if (free_scratch.empty()) return std::make_unique<Scratch>();
  auto scratch = std::move(free_scratch.back());
  free_scratch.pop_back();
  return scratch;
}

void Tokenizer::State::give_back(std::unique_ptr<Scratch> scratch) {
  const std::lock_guard lock(mutex);
  free_scratch.push_back(std::move(scratch));
}

// Text without verbatim added tokens.
Result<void> Tokenizer::State::encode_plain(std::string_view text,
                                            bool at_start,
                                            std::size_t most_tokens,
                                            Scratch& scratch,
                                            std::vector<std::int32_t>& ids) const {
  std::string rewritten;
  if (!normalizer.empty()) {
    MOIETY_ASSIGN(rewritten, normalizer.apply(text, at_start, scratch.budget));
    text = rewritten;
  }
  for (const auto& piece : normalized.split(text)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    const bool first = at_start && piece.text.data() == text.data();
    MOIETY_TRY(pre_tokenizer.apply(piece.text, first, scratch.pieces, scratch.budget));
    for (const std::string_view word : scratch.pieces.result()) {
      if (!model.encode(word, most_tokens, scratch.model, ids)) return too_many(most_tokens);
    }
  }
  return {};
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text,
                                                    bool add_special_tokens,
                                                    std::size_t most_tokens) const {
  State& state = *state_;
  std::string repaired;
  if (!is_valid_utf8(text)) {
    append_replacing_invalid(text, repaired);
    text = repaired;
  }
  std::vector<std::int32_t> ids;
  if (add_special_tokens) ids = state.special_tokens.before;
  auto scratch = state.take_scratch();
  scratch->budget = MatchBudget(text.size());
  Result<void> done;
  for (const auto& piece : state.verbatim.split(text)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    done = state.encode_plain(piece.text, piece.text.data() == text.data(), most_tokens, *scratch,
                              ids);
    if (!done) break;
  }
  state.give_back(std::move(scratch));
  if (!done) return done.error();
  if (add_special_tokens) {
    const auto& after = state.special_tokens.after;
    ids.insert(ids.end(), after.begin(), after.end());
  }
  if (ids.size() > most_tokens) return too_many(most_tokens);
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids, bool skip_special) const {
  DecodeState state;
  std::string text;
  for (std::int32_t id : ids) {
    if (!(skip_special && is_special(id))) push(id, state, text);
  }
  finish(state, text);
  return text;
}

void Tokenizer::push(std::int32_t id, DecodeState& state, std::string& text) const {
  if (!state_->has(id)) return;
  const bool first = state.num_tokens == 0 && !state_->first_tokens.empty();
  const auto& tokens = first ? state_->first_tokens : state_->tokens;
  state_->decoder.push(tokens[static_cast<std::size_t>(id)], state, text);
}

void Tokenizer::finish(DecodeState& state, std::string& text) const {
  state_->decoder.finish(state, text);
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  if (!state_->has(id)) return {};
  return state_->tokens[static_cast<std::size_t>(id)].text;
}

bool Tokenizer::is_special(std::int32_t id) const {
  return state_->has(id) && state_->special[static_cast<std::size_t>(id)];
}

const SpecialTokens& Tokenizer::special_tokens() const { return state_->special_tokens; }

std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(state_->known.size());
}

std::int32_t Tokenizer::token_id(std::string_view text) const {
  const auto added = state_->added_ids.find(std::string(text));
  return added != state_->added_ids.end() ? added->second : state_->model.vocab().find(text);
}

}  // namespace moiety
