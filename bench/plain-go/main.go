// What a team would write in an afternoon, for comparison: net/http and pgx with its pool and its prepared
// statements, on the service's own tables. It checks the token, the text and that the recipient exists, as
// dialog-api does, keeps both users' inboxes if told to, and knows nothing of shards, retries, time limits or metrics.
package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

type message struct {
	From      uuid.UUID  `json:"from"`
	To        uuid.UUID  `json:"to"`
	Text      string     `json:"text"`
	ID        uuid.UUID  `json:"id"`
	CreatedAt time.Time  `json:"created_at"`
	EditedAt  *time.Time `json:"edited_at,omitempty"`
	DeletedAt *time.Time `json:"deleted_at,omitempty"`
}

var (
	key   []byte
	pool  *pgxpool.Pool
	inbox *bool
)

// caller is the user that an HS256 token was issued to.
func caller(r *http.Request) (uuid.UUID, error) {
	parts := strings.Split(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), ".")
	if len(parts) != 3 {
		return uuid.Nil, errors.New("no token")
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(parts[0] + "." + parts[1]))
	if err != nil || !hmac.Equal(signature, mac.Sum(nil)) {
		return uuid.Nil, errors.New("wrong signature")
	}
	claims := struct {
		Sub uuid.UUID `json:"sub"`
		Exp int64     `json:"exp"`
	}{}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(text, &claims) != nil || time.Now().Unix() >= claims.Exp {
		return uuid.Nil, errors.New("not valid")
	}
	return claims.Sub, nil
}

// dialogID is the service's own: the first half of a SHA-256 over the pair in order.
func dialogID(one, other uuid.UUID) uuid.UUID {
	if bytes.Compare(one[:], other[:]) > 0 {
		one, other = other, one
	}
	hash := sha256.Sum256(append(append([]byte("dialog-id/1"), one[:]...), other[:]...))
	return uuid.UUID(hash[:16])
}

// users reads who asks and who the other is.
func users(w http.ResponseWriter, r *http.Request) (me, peer uuid.UUID, ok bool) {
	me, err := caller(r)
	if err != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return me, peer, false
	}
	if peer, err = uuid.Parse(r.PathValue("user_id")); err != nil {
		w.WriteHeader(http.StatusBadRequest)
	}
	return me, peer, err == nil
}

func send(w http.ResponseWriter, r *http.Request) {
	from, to, ok := users(w, r)
	if !ok {
		return
	}
	var draft struct{ Text string }
	err := json.NewDecoder(r.Body).Decode(&draft)
	if n := utf8.RuneCountInString(draft.Text); err != nil || n < 1 || n > 4096 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var one int
	if pool.QueryRow(r.Context(), "SELECT 1 FROM users WHERE user_id = $1", to).Scan(&one) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if err := store(r.Context(), from, to, draft.Text); err != nil {
		log.Print(err)
		w.WriteHeader(http.StatusInternalServerError)
	}
}

const (
	insert = `INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
		VALUES ($1, $2, $3, $4, $5, $6)`
	merge = `INSERT INTO user_dialogs (user_id, dialog_id, peer_id, last_message_id) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, dialog_id) DO UPDATE SET last_message_id = excluded.last_message_id
		WHERE user_dialogs.last_message_id < excluded.last_message_id`
)

func store(ctx context.Context, from, to uuid.UUID, text string) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	dialog := dialogID(from, to)
	if !*inbox {
		_, err = pool.Exec(ctx, insert, dialog, id, from, to, text, time.Now())
		return err
	}
	// In an order that both users' sends share: two that cross must not wait for each other.
	low, high := from, to
	if bytes.Compare(low[:], high[:]) > 0 {
		low, high = high, low
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, insert, dialog, id, from, to, text, time.Now())
		for _, users := range [][2]uuid.UUID{{low, high}, {high, low}} {
			if err == nil {
				_, err = tx.Exec(ctx, merge, users[0], dialog, users[1], id)
			}
		}
		return err
	})
}

// paging is the first id not wanted and how many, from the parameters behind the question mark.
func paging(r *http.Request) (before uuid.UUID, limit int, err error) {
	before, limit = uuid.Max, 100
	query := r.URL.Query()
	if text := query.Get("before"); text != "" {
		before, err = uuid.Parse(text)
	}
	if text := query.Get("limit"); text != "" && err == nil {
		limit, err = strconv.Atoi(text)
	}
	if limit < 1 || limit > 100 {
		err = errors.New("limit can be 1 to 100")
	}
	return before, limit, err
}

func list(w http.ResponseWriter, r *http.Request) {
	me, peer, ok := users(w, r)
	if !ok {
		return
	}
	before, limit, err := paging(r)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	rows, err := pool.Query(r.Context(),
		`SELECT from_user_id, to_user_id, text, message_id, created_at, edited_at, deleted_at FROM messages
		 WHERE dialog_id = $1 AND message_id < $2 ORDER BY message_id DESC LIMIT $3`, dialogID(me, peer), before, limit)
	messages := []message{}
	if err == nil {
		defer rows.Close()
		for rows.Next() && err == nil {
			var m message
			err = rows.Scan(&m.From, &m.To, &m.Text, &m.ID, &m.CreatedAt, &m.EditedAt, &m.DeletedAt)
			messages = append(messages, m)
		}
		err = errors.Join(err, rows.Err())
	}
	body, encoded := json.Marshal(messages)
	if err = errors.Join(err, encoded); err != nil {
		log.Print(err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if len(messages) == limit {
		w.Header().Set("X-Next-Cursor", messages[limit-1].ID.String())
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

func main() {
	listen := flag.String("listen", "", "address and port")
	database := flag.String("database", "", "connection string")
	keyFile := flag.String("token-key-file", "", "key that tokens are signed with, base64")
	connections := flag.String("connections", "", "size of the pool")
	inbox = flag.Bool("inbox", false, "keep both users' inboxes, in the message's transaction")
	flag.Parse()
	text, err := os.ReadFile(*keyFile)
	if err != nil {
		log.Fatal(err)
	}
	if key, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(text))); err != nil {
		log.Fatal(err)
	}
	if pool, err = pgxpool.New(context.Background(), *database+" pool_max_conns="+*connections); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("POST /dialog/{user_id}/send", send)
	http.HandleFunc("GET /dialog/{user_id}/list", list)
	log.Fatal(http.ListenAndServe(*listen, nil))
}
