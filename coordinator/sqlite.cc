#include "coordinator/sqlite.h"

#include <fmt/core.h>
#include <sqlite3.h>

#include "common/check.h"

namespace moiety::coordinator {

namespace {

ErrorCode error_code(int result) {
  switch (result & 0xff) {  // the rest tells sorts of one error apart
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return ErrorCode::kDataLoss;
    case SQLITE_FULL:
      return ErrorCode::kResourceExhausted;
    default:
      return ErrorCode::kIo;
  }
}

Error last_error(sqlite3* database) {
  return fail(
      error_code(sqlite3_errcode(database)),
      fmt::format("{}: {}", sqlite3_db_filename(database, "main"), sqlite3_errmsg(database)));
}

}  // namespace

SqliteStatement::~SqliteStatement() { sqlite3_finalize(statement_); }

// Binding fails only for a wrong index or a value of gigabytes: bugs of the caller.
void SqliteStatement::bind(int index, std::int64_t value) {
  MOIETY_CHECK(sqlite3_bind_int64(statement_, index, value) == SQLITE_OK, "a parameter's index");
}

void SqliteStatement::bind(int index, std::string_view text) {
  MOIETY_CHECK(sqlite3_bind_text64(statement_, index, text.data(), text.size(), SQLITE_TRANSIENT,
                                   SQLITE_UTF8) == SQLITE_OK,
               "a parameter's index or size");
}

void SqliteStatement::bind_null(int index) {
  MOIETY_CHECK(sqlite3_bind_null(statement_, index) == SQLITE_OK, "a parameter's index");
}

Result<bool> SqliteStatement::step() {
  const int result = sqlite3_step(statement_);
  if (result == SQLITE_ROW) return true;
  // Reset repeats the error of a step that failed.
  if (sqlite3_reset(statement_) != SQLITE_OK || result != SQLITE_DONE)
    return last_error(sqlite3_db_handle(statement_));
  return false;
}

Result<void> SqliteStatement::run() {
  MOIETY_ASSIGN(const bool row, step());
  MOIETY_CHECK(!row, "run() is for statements without rows");
  return {};
}

std::int64_t SqliteStatement::integer(int column) const {
  return sqlite3_column_int64(statement_, column);
}

std::string SqliteStatement::text(int column) const {
  const unsigned char* bytes = sqlite3_column_text(statement_, column);
  if (bytes == nullptr) return {};
  return std::string(reinterpret_cast<const char*>(bytes),
                     static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
}

bool SqliteStatement::is_null(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

Result<SqliteDatabase> SqliteDatabase::open(const std::filesystem::path& path,
                                            const std::string& name,
                                            int flags) {
  sqlite3* handle = nullptr;
  const int result = sqlite3_open_v2(name.c_str(), &handle, flags | SQLITE_OPEN_NOMUTEX, nullptr);
  SqliteDatabase database(handle);  // also after a failure there is something to close
  if (result != SQLITE_OK) {
    return fail(error_code(result),
                fmt::format("{}: cannot open: {}", path.string(),
                            handle == nullptr ? sqlite3_errstr(result) : sqlite3_errmsg(handle)));
  }
  sqlite3_extended_result_codes(handle, 1);
  return database;
}

Result<SqliteDatabase> SqliteDatabase::open(const std::filesystem::path& path) {
  MOIETY_ASSIGN(SqliteDatabase database,
                open(path, path.string(), SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE));
  int keep_wal = 1;
  if (sqlite3_file_control(database.database_, "main", SQLITE_FCNTL_PERSIST_WAL, &keep_wal) !=
      SQLITE_OK)
    return fail(ErrorCode::kIo,
                fmt::format("{}: SQLite's write-ahead log cannot be kept here", path.string()));
  return database;
}

Result<SqliteDatabase> SqliteDatabase::open_to_look(const std::filesystem::path& path) {
  std::string uri = "file:";
  for (const char each : std::filesystem::absolute(path).string()) {
    const bool special = each == '%' || each == '?' || each == '#';
    uri += special ? fmt::format("%{:02x}", each) : std::string(1, each);
  }
  return open(path, uri + "?immutable=1", SQLITE_OPEN_READONLY | SQLITE_OPEN_URI);
}

SqliteDatabase::~SqliteDatabase() { sqlite3_close_v2(database_); }

Result<void> SqliteDatabase::execute(const std::string& sql) {
  if (sqlite3_exec(database_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK)
    return last_error(database_);
  return {};
}

Result<SqliteStatement> SqliteDatabase::prepare(std::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(database_, sql.data(), static_cast<int>(sql.size()), &statement,
                         nullptr) != SQLITE_OK)
    return last_error(database_);
  return SqliteStatement(statement);
}

Result<std::int64_t> SqliteDatabase::integer(std::string_view sql) {
  MOIETY_ASSIGN(SqliteStatement statement, prepare(sql));
  MOIETY_ASSIGN(const bool row, statement.step());
  return row ? statement.integer(0) : 0;
}

Result<SqliteTransaction> SqliteTransaction::begin(SqliteDatabase& database) {
  MOIETY_TRY(database.execute("BEGIN IMMEDIATE"));
  return SqliteTransaction(&database);
}

SqliteTransaction::~SqliteTransaction() {
  // An error that undid it already makes this one fail; both leave what was there before.
  if (database_ != nullptr) (void)database_->execute("ROLLBACK");
}

Result<void> SqliteTransaction::commit() {
  MOIETY_TRY(database_->execute("COMMIT"));
  database_ = nullptr;
  return {};
}

}  // namespace moiety::coordinator
