// The handshake comparison's Go: net/http, and one writer goroutine that commits whatever waits.
//
// usage: handshake PORT FILE
//
// POST / with the form fields client_uuid (a code is given) or client_uuid, server_uuid and message
// (it is committed, then answered). Codes are hashed, in memory alone; the log file follows the
// commits. SQLite is the C library, bound in the few lines it takes.
package main

/*
#cgo LDFLAGS: -lsqlite3
#include <sqlite3.h>
#include <stdlib.h>

static int bind_text(sqlite3_stmt *s, int n, _GoString_ text) {
	return sqlite3_bind_text(s, n, _GoStringPtr(text), _GoStringLen(text), SQLITE_TRANSIENT);
}

// One message; a call for each would be six into C.
static int insert(sqlite3_stmt *s, _GoString_ at, _GoString_ id, _GoString_ text, _GoString_ peer) {
	bind_text(s, 1, at);
	bind_text(s, 2, id);
	bind_text(s, 3, text);
	bind_text(s, 4, peer);
	int done = sqlite3_step(s);
	sqlite3_reset(s);
	return done;
}
*/
import "C"

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"sync"
	"time"
	"unsafe"
)

type message struct {
	id, text, peer string
	seq            int64
	kept           chan bool
}

var (
	codes   = map[string][32]byte{}
	guard   sync.RWMutex
	waiting = make(chan *message, 50000)
)

func execute(db *C.sqlite3, sql string) bool {
	text := C.CString(sql)
	defer C.free(unsafe.Pointer(text))
	return C.sqlite3_exec(db, text, nil, nil, nil) == C.SQLITE_OK
}

func open(file string) *C.sqlite3 {
	var db *C.sqlite3
	name := C.CString(file)
	defer C.free(unsafe.Pointer(name))
	if C.sqlite3_open(name, &db) != C.SQLITE_OK {
		log.Fatal("cannot open ", file)
	}
	for _, sql := range []string{
		"PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL",
		"CREATE TABLE codes (id TEXT, hash BLOB)",
		"CREATE TABLE messages (seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL," +
			" id TEXT NOT NULL, message TEXT NOT NULL, peer TEXT NOT NULL)",
		"CREATE INDEX messages_id ON messages (id)",
	} {
		if !execute(db, sql) {
			log.Fatal(sql)
		}
	}
	return db
}

func write(db *C.sqlite3, lines *bufio.Writer) {
	var statement *C.sqlite3_stmt
	sql := C.CString("INSERT INTO messages (at, id, message, peer) VALUES (?, ?, ?, ?)")
	C.sqlite3_prepare_v2(db, sql, -1, &statement, nil)
	for first := range waiting {
		group := []*message{first}
		for len(waiting) > 0 {
			group = append(group, <-waiting)
		}
		at := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
		good := execute(db, "BEGIN IMMEDIATE")
		for _, m := range group {
			good = good && C.insert(statement, at, m.id, m.text, m.peer) == C.SQLITE_DONE
			m.seq = int64(C.sqlite3_last_insert_rowid(db))
		}
		good = good && execute(db, "COMMIT")
		for _, m := range group {
			m.kept <- good
		}
		for _, m := range group {
			line, _ := json.Marshal(map[string]any{
				"time": at, "seq": m.seq, "id": m.id, "message": m.text})
			lines.Write(line)
			lines.WriteByte('\n')
		}
		lines.Flush()
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	id, code, text := r.PostFormValue("client_uuid"), r.PostFormValue("server_uuid"),
		r.PostFormValue("message")
	if code == "" {
		random := make([]byte, 16)
		rand.Read(random)
		code = hex.EncodeToString(random)
		guard.Lock()
		codes[id] = sha256.Sum256([]byte(code))
		guard.Unlock()
		w.Write([]byte(code))
		return
	}
	shown := sha256.Sum256([]byte(code))
	guard.RLock()
	known := codes[id]
	guard.RUnlock()
	if subtle.ConstantTimeCompare(shown[:], known[:]) == 0 || text == "" {
		http.Error(w, "Error: wrong id or code", 400)
		return
	}
	m := &message{id: id, text: text, peer: r.RemoteAddr, kept: make(chan bool, 1)}
	waiting <- m
	if !<-m.kept {
		http.Error(w, "Error: not stored", 503)
		return
	}
	w.Header().Set("Status", "Authentication success")
	w.Header().Set("Server-Uuid", code)
	w.Header().Set("Client-Uuid", id)
	w.Header().Set("Content-Length", "0")
}

func main() {
	lines, err := os.Create("logfile.log")
	if err != nil {
		log.Fatal(err)
	}
	go write(open(os.Args[2]), bufio.NewWriterSize(lines, 1<<20))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(serve)))
}
