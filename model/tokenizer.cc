#include "model/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "common/file.h"
#include "model/byte_level.h"
#include "model/tokenizer_json.h"
#include "model/utf8.h"

namespace moiety {

struct Tokenizer::State {
  BpeModel model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  AddedTokenMatcher verbatim;    // added tokens that are looked for in the text as it is
  AddedTokenMatcher normalized;  // and those in normalized text
  TokenMap added_ids;
  std::vector<std::string> bytes;  // by id
  std::vector<bool> special;       // by id

  bool has(std::int32_t id) const { return id >= 0 && static_cast<std::size_t>(id) < bytes.size(); }
};

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  MOIETY_ASSIGN(const std::string json, read_file(path));
  auto tokenizer = parse(json);
  if (!tokenizer) return with_context(path.string(), tokenizer.error());
  return tokenizer;
}

Result<Tokenizer> Tokenizer::parse(std::string_view json) {
  MOIETY_ASSIGN(TokenizerParts parts, parse_tokenizer_json(json));
  auto state = std::make_unique<State>(State{std::move(parts.model),
                                             std::move(parts.normalizer),
                                             std::move(parts.pre_tokenizer),
                                             {},
                                             {},
                                             {},
                                             {},
                                             {}});
  std::int32_t size = 0;
  for (const auto& [text, id] : state->model.vocab()) size = std::max(size, id + 1);
  for (const AddedToken& token : parts.added_tokens) size = std::max(size, token.id + 1);
  state->bytes.resize(static_cast<std::size_t>(size));
  state->special.resize(static_cast<std::size_t>(size));
  for (const auto& [text, id] : state->model.vocab()) {
    state->bytes[static_cast<std::size_t>(id)] = byte_level_decode(text);
  }
  for (const AddedToken& token : parts.added_tokens) {
    const std::string pattern =
        token.normalized ? state->normalizer.apply(token.content) : token.content;
    if (!(token.normalized ? state->normalized : state->verbatim).add(token, pattern)) {
      return fail(
          ErrorCode::kInvalidArgument,
          fmt::format("added_tokens: '{}' and another token match the same text", token.content));
    }
    state->bytes[static_cast<std::size_t>(token.id)] = byte_level_decode(pattern);
    state->special[static_cast<std::size_t>(token.id)] = token.special;
    state->added_ids.emplace(token.content, token.id);
  }
  return Tokenizer(std::move(state));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  const State& state = *state_;
  std::string repaired;
  if (!is_valid_utf8(text)) {
    append_replacing_invalid(text, repaired);
    text = repaired;
  }
  std::vector<std::int32_t> ids;
  BpeModel::Scratch scratch;
  for (const auto& raw : state.verbatim.split(text)) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    std::string rewritten;
    std::string_view plain = raw.text;
    if (!state.normalizer.empty()) plain = rewritten = state.normalizer.apply(raw.text);
    for (const auto& piece : state.normalized.split(plain)) {
      if (piece.id >= 0) {
        ids.push_back(piece.id);
        continue;
      }
      std::deque<std::string> storage;
      for (std::string_view word : state.pre_tokenizer.apply(piece.text, storage)) {
        state.model.encode(word, scratch, ids);
      }
    }
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids, bool skip_special) const {
  std::string bytes;
  for (std::int32_t id : ids) {
    if (!(skip_special && is_special(id))) bytes += token_bytes(id);
  }
  std::string text;
  text.reserve(bytes.size());
  append_replacing_invalid(bytes, text);
  return text;
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  return state_->has(id) ? state_->bytes[static_cast<std::size_t>(id)] : std::string_view();
}

bool Tokenizer::is_special(std::int32_t id) const {
  return state_->has(id) && state_->special[static_cast<std::size_t>(id)];
}

std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(state_->bytes.size());
}

std::int32_t Tokenizer::token_id(std::string_view text) const {
  const auto added = state_->added_ids.find(text);
  if (added != state_->added_ids.end()) return added->second;
  const auto token = state_->model.vocab().find(text);
  return token == state_->model.vocab().end() ? -1 : token->second;
}

}  // namespace moiety
